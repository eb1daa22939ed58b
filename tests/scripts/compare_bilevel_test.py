"""The comparison with TorchOpt: of the same gradients, and only with it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HAS_PEERS = all(map(importlib.util.find_spec, ("torch", "torchopt")))


def _run(*flags):
  return subprocess.run(
    [sys.executable, "scripts/compare_bilevel.py", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.skipif(not HAS_PEERS, reason="needs the extra peers")
@pytest.mark.slow
def test_hypergradients_of_torchopt_and_of_plain_torch_are_the_same():
  """In float64: of penalties, unrolled and implicit, and of weights."""
  done = _run("--json", "--repeats=1")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])["programs"]
  assert len(found) == 5
  for name, program in found.items():
    # Conjugate gradients stop at a relative residual of 1e-6.
    tolerance = 1e-5 if name.startswith("implicit") else 1e-12
    assert program["gradient_error"] < tolerance, name


@pytest.mark.slow
@pytest.mark.skipif(HAS_PEERS, reason="they are installed")
def test_missing_packages_are_named():
  done = _run()
  assert done.returncode == 1
  assert done.stderr.startswith("error: torch")
  assert done.stderr.endswith("is not installed: pip install -e '.[peers]'.\n")


@pytest.mark.slow
def test_a_flag_without_effect_is_refused():
  done = _run("--seconds=1")
  assert done.returncode == 1
  assert done.stderr.startswith("error: --seconds has no effect here")
