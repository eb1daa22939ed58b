"""Sweeps of a real script: the runs that they leave are ordinary ones."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import metajax

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
  "steps": 20,
  "log_every": 10,
  "eval_every": 20,
  "checkpoint_every": 10,
  "meta_batch": 4,
  "task_chunk": 1,
  "eval_tasks": 8,
  "eval_inner_steps": 1,
}


def _run(workdir, *arguments, **environment):
  words = [f"--{name}={value}" for name, value in FLAGS.items()]
  return subprocess.run(
    [sys.executable, "-m", "experiments.maml_sinusoid", *words]
    + [f"--workdir={workdir}", *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=False,
  )


def _means(workdir):
  with (workdir / "sweep.csv").open() as file:
    rows = list(csv.DictReader(file))
  return {
    row["folder"]: float(row["mse_5_shot_1_steps"])
    for row in rows
    if row["status"] == "done"
  }


@pytest.mark.slow
def test_points_together_are_those_one_after_the_other_and_a_run(tmp_path):
  text = "--sweep=inner_lr=0.01,0.02,1e25 seed=3..4"
  together = _run(tmp_path / "together", text)
  apart = _run(tmp_path / "apart", text, "--nosweep_together")
  for ended in (together, apart):
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: 2 of 6 points failed, the first of them inn")
    assert "is not finite" in last
  assert "resumed at step 20" in together.stderr
  assert "resumed" not in apart.stderr
  found, expected = _means(tmp_path / "together"), _means(tmp_path / "apart")
  assert len(expected) == 4 and found.keys() == expected.keys()
  for name, mean in expected.items():
    assert found[name] == pytest.approx(mean, rel=1e-4)
  # What a point is, the run is with its flags; and the other way round.
  name = "inner_lr=0.02,seed=4"
  arguments = ["--inner_lr=0.02", "--seed=4"]
  assert _run(tmp_path / "alone", *arguments).returncode == 0
  results = json.loads((tmp_path / "alone" / "results.json").read_text())
  assert expected[name] == results["metrics"]["mse_5_shot_1_steps"]["mean"]
  again = _run(tmp_path / "together" / name, *arguments)
  assert again.returncode == 0 and "finished before" in again.stdout
  params = [
    metajax.load(tmp_path / folder).meta_params
    for folder in ("alone", f"together/{name}")
  ]
  for one, other in zip(*map(jax.tree.leaves, params), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_accelerators_are_left_to_the_runs(tmp_path):
  """The sweep itself would take a GPU's memory, and here dies without one."""
  ended = _run(tmp_path / "w", "--sweep=seed=3", JAX_PLATFORMS="rocm")
  assert ended.returncode == 2
  last = ended.stderr.splitlines()[-1]
  assert last.startswith(
    "error: 1 of 1 points failed, the first of them seed=3:"
  )
  assert "JAX_PLATFORMS=rocm: JAX finds no such device" in last
