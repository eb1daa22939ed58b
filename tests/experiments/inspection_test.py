"""A run that ends at a step that is not finite, and what it says of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
  # Steps so large that parameters overflow within a few.
  flags = ["--inner_lr=1e15", "--inner_steps=4", "--meta_batch=2"]
  flags += ["--steps=3", "--eval_tasks=2", "--eval_inner_steps=1"]

  def run(*more):
    return subprocess.run(
      [sys.executable, "-m", "experiments.maml_sinusoid"]
      + [f"--workdir={tmp_path}/run", *flags, *more],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  return run


@pytest.mark.slow
def test_step_that_is_not_finite_ends_the_run_and_can_be_replayed(
  run, tmp_path
):
  ended = run()
  assert ended.returncode == 2
  assert ended.stderr.splitlines()[1:] == [
    "compiling the training loop",
    "error: the loss, the gradient or the update of step 0 is not finite; a "
    "checkpoint of the state before is written. --replay_step=0 shows its "
    "tasks (of --seed=0), --skip_non_finite goes on without such steps.",
  ]
  replayed = run("--replay_step=0")
  assert replayed.returncode == 0, replayed.stderr
  assert "not finite: all gradients" in replayed.stdout
  shown = json.loads((tmp_path / "run/replay_0.json").read_text())
  assert (shown["seed"], shown["step"]) == (0, 0)
  assert set(shown["metrics"]) == {"loss", "gradient_norm"}
  assert all(value == [False, False] for value in shown["finite"].values())
  skipped = run("--skip_non_finite")
  # It has learned nothing, and that is said where a script can see it.
  assert skipped.returncode == 2
  assert "error: mse_5_shot_1_steps is inf: " in skipped.stderr
  results = json.loads((tmp_path / "run/results.json").read_text())
  assert results["protocol"]["skipped_steps"] == 3
