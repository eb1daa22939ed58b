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
POOLED = ["--pooled", "--image_size=20", "--channels=3", "--filters=8"]


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
@pytest.mark.slow
@pytest.mark.parametrize(
  "flags",
  [
    ["--inner_steps=1"],
    ["--inner_steps=3"],
    ["--inner_steps=2", *POOLED],
    ["--inner_steps=2", "--learner=fomaml", *POOLED],
    ["--inner_steps=2", "--learner=anil", *POOLED],
    ["--learner=prototypical", *POOLED],
    ["--learner=ridge", *POOLED],
    ["--learner=supervised", "--batch_size=8", *POOLED],
  ],
  ids=" ".join,
)
def test_peers_have_the_same_gradient_and_are_timed_in_turns(flags):
  done = _run("scripts/compare_peers.py", *SMALL, *flags, "--repeats=2")
  assert done.returncode == 0, done.stderr
  programs = json.loads(done.stdout.splitlines()[-1])["programs"]
  ours = programs.pop("metajax")["seconds"]
  eager, functional = "PyTorch, eager", "PyTorch, torch.func"
  has_loop = any("inner" in flag for flag in flags)
  assert set(programs) == ({eager, functional} if has_loop else {eager})
  for program in programs.values():
    assert program["gradient_error"] < 1e-12
    ratios = np.array(program["seconds"]) / ours
    np.testing.assert_allclose(program["ratios"], ratios)
    assert len(ratios) == 2


@pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="needs the extra peers"
)
def test_a_learner_without_a_peer_is_named():
  done = _run("scripts/compare_peers.py", "--learner=cavia")
  assert done.returncode == 1
  assert "error: --learner=cavia: must be one of maml, fomaml," in done.stderr


@pytest.mark.slow
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
