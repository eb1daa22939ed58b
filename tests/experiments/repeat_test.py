"""Scripts that train in one piece show their results when run again."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# They have no checkpoints.
SCRIPTS = [
  path
  for path in sorted(ROOT.glob("experiments/*.py"))
  if "report.finish_whole(" in path.read_text()
]


def test_there_are_such_scripts():
  assert len(SCRIPTS) >= 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_one_looks_for_its_results_before_it_trains(script):
  text = script.read_text().partition("def main()")[2]
  start, shown = text.index("folder.start("), text.index("show_finished(")
  assert start < shown < text.index("perf_counter()")


@pytest.mark.slow
def test_the_second_run_shows_the_results_of_the_first(tmp_path):
  command = [sys.executable, "-m", "experiments.rer_continual"]
  command += ["--tasks=2", "--examples=2", "--num_streams=2"]
  command.append(f"--workdir={tmp_path}")
  first, again = (
    subprocess.run(
      command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    for _ in range(2)
  )
  assert first.returncode == 0, first.stderr
  assert again.returncode == 0, again.stderr
  assert "finished before" in again.stdout
  shown = [line for line in first.stdout.splitlines() if "+-" in line]
  assert shown and all(line in again.stdout for line in shown)
