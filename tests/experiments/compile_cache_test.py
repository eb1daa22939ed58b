"""What was compiled once is read, by default from the user's caches."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_second_start_compiles_nothing_that_the_first_did(tmp_path):
  environment = {
    **os.environ,
    "XDG_CACHE_HOME": str(tmp_path / "caches"),
    "JAX_COMPILATION_CACHE_DIR": "",
  }
  command = [sys.executable, "-m", "experiments.maml_sinusoid"]
  command += ["--steps=2", "--eval_tasks=2", "--meta_batch=2", "--task_chunk=1"]
  found = []
  for workdir in ("one", "two"):
    subprocess.run(
      [*command, "--eval_inner_steps=1", f"--workdir={tmp_path / workdir}"],
      cwd=ROOT,
      env=environment,
      check=True,
      stderr=subprocess.DEVNULL,
    )
    files = (tmp_path / "caches/metajax").glob("*-cache")
    found.append({path.name for path in files})
  assert found[0] == found[1]
  assert any(name.startswith("jit_train_steps") for name in found[0])
