"""What was compiled once is read, by default from the user's caches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs an experiment, and counts what JAX reads of its cache.
COUNTED = """
import atexit, runpy
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
hit = "/jax/compilation_cache/cache_hits"
atexit.register(lambda: print("hits:", events.count(hit)))
runpy.run_module("experiments.maml_sinusoid", {}, "__main__", True)
"""


@pytest.mark.slow
def test_second_start_compiles_nothing_that_the_first_did(tmp_path):
  environment = {
    **os.environ,
    "XDG_CACHE_HOME": str(tmp_path / "caches"),
    "JAX_COMPILATION_CACHE_DIR": "",
    # All of them: what takes about the least time that counts may be in or out.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = [sys.executable, "-c", COUNTED]
  command += ["--steps=2", "--eval_tasks=2", "--meta_batch=2", "--task_chunk=1"]
  found, hits = [], []
  for workdir in ("one", "two"):
    done = subprocess.run(
      [*command, "--eval_inner_steps=1", f"--workdir={tmp_path / workdir}"],
      cwd=ROOT,
      env=environment,
      check=True,
      capture_output=True,
      text=True,
    )
    hits.append(int(done.stdout.split("hits: ")[1]))
    files = (tmp_path / "caches/metajax").glob("*-cache")
    found.append({path.name for path in files})
  assert found[0] == found[1]
  # Some programs are needed twice in a run.
  assert hits[1] == hits[0] + len(found[0])
  assert any(name.startswith("jit_train_steps") for name in found[0])
