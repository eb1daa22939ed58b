"""Scripts that train in one piece show their results when run again."""

import subprocess
import sys

import pytest

SCRIPTS = {
  "hyperparameters": ("--steps=2", "--splits=2"),
  "reweight": ("--steps=2", "--trainings=2"),
  "gradient_estimators": ("--unroll=20", "--loops=2", "--pairs=2"),
  "rer_continual": ("--tasks=2", "--examples=2", "--num_streams=2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_second_run_shows_the_results_of_the_first(tmp_path, name):
  command = [sys.executable, "-m", f"experiments.{name}", *SCRIPTS[name]]
  command.append(f"--workdir={tmp_path}")
  first, again = (
    subprocess.run(command, capture_output=True, text=True) for _ in range(2)
  )
  assert first.returncode == 0, first.stderr
  assert again.returncode == 0, again.stderr
  assert "finished before" in again.stdout
  shown = [line for line in first.stdout.splitlines() if "+-" in line]
  assert shown and all(line in again.stdout for line in shown)
