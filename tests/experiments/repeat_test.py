"""Scripts show their results when a run that has ended is run again."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# They have no checkpoints.
SCRIPTS = [
  path
  for path in sorted(ROOT.glob("experiments/**/*.py"))
  if "folder.start(" in path.read_text()
]


def test_there_are_such_scripts():
  assert len(SCRIPTS) >= 10


# `Stages` does so by itself.
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_one_looks_for_its_results_before_it_trains(script):
  text = script.read_text().partition("folder.start(")[2]
  shown = text.index("show_finished(")
  starts = ("training.train(", "perf_counter()", "wall_clock(", " fit(")
  later = [text.find(x) for x in starts]
  assert all(shown < place for place in later if place >= 0)
  assert any(place >= 0 for place in later)


@pytest.mark.slow
@pytest.mark.parametrize(
  "arguments",
  [
    ["rer_continual", "--tasks=2", "--examples=2", "--num_streams=2"],
    # Of stages.
    ["context_linear", "--steps=2", "--eval_tasks=4"],
  ],
  ids=lambda arguments: arguments[0],
)
def test_the_second_run_shows_the_results_of_the_first(arguments, tmp_path):
  command = [sys.executable, "-m", f"experiments.{arguments[0]}"]
  command += [*arguments[1:], f"--workdir={tmp_path}"]
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
