"""The comparison with PyTorch: of the same gradients, and only with PyTorch."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--ways=2", "--query_shots=1", "--tasks=2", "--seconds=0", "--json"]


def _run(*command):
  return subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="needs the extra peers"
)
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_peers_have_the_same_gradient_and_are_timed_in_turns(inner_steps):
  steps = f"--inner_steps={inner_steps}"
  done = _run("scripts/compare_peers.py", *SMALL, steps, "--repeats=2")
  assert done.returncode == 0, done.stderr
  programs = json.loads(done.stdout.splitlines()[-1])["programs"]
  ours = programs.pop("metajax")["seconds"]
  assert set(programs) == {"PyTorch, eager", "PyTorch, torch.func"}
  for program in programs.values():
    assert program["gradient_error"] < 1e-12
    ratios = np.array(program["seconds"]) / ours
    np.testing.assert_allclose(program["ratios"], ratios)
    assert len(ratios) == 2


def test_without_pytorch_it_says_what_to_install():
  script = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_path("scripts/compare_peers.py", run_name="__main__")
"""
  done = _run("-c", script, *SMALL)
  assert done.returncode == 1
  assert "error: torch is not installed: pip install -e" in done.stderr
  assert "Traceback" not in done.stderr
