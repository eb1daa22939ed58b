"""Scripts show their results when a run that has ended is run again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.slow
def test_a_seed_that_draws_the_training_images_stays_what_it_was(tmp_path):
  """Otherwise images of the training could be among those of the test."""
  flags = {"flags": {"experiment": "distill_dataset"}}
  (tmp_path / "config.json").write_text(json.dumps(flags))
  (tmp_path / "results.json").write_text("{}")
  done = subprocess.run(
    [sys.executable, "-m", "experiments.distill_dataset"]
    + [f"--workdir={tmp_path}", "--eval_seed=1"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 2
  assert "holds a run with --eval_seed=0, not 1:" in done.stderr
  assert (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_a_pretraining_is_of_one_folder_of_images(tmp_path):
  """Its results would otherwise be shown for any folder."""
  draw = np.random.default_rng(0)
  for name in range(12):
    folder = tmp_path / "images" / str(name)
    folder.mkdir(parents=True)
    for i in range(3):
      pixels = draw.integers(256, size=(32, 32, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")
  flags = {"experiment": "pretrain", "data_dir": "others-1a2b3c4d", "ways": 2}
  flags |= {"query_shots": 1, "image_size": 32}
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps({"flags": flags}))
  (workdir / "results.json").write_text("{}")
  done = subprocess.run(
    [sys.executable, "-m", "experiments.pretrain", f"--workdir={workdir}"]
    + [f"--data_dir={tmp_path / 'images'}", "--ways=2", "--query_shots=1"]
    + ["--image_size=32"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  assert "a run with --data_dir=others-1a2b3c4d, not images-" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  "steps, message",
  [
    # It goes on to the next error.
    (70_000, "error: --replay_step=70000: must be less than --steps=70000"),
    # The training was extended since, and has not ended.
    (60_000, "holds a run with --eval_tasks=600, not 7: use that value"),
  ],
)
def test_an_evaluation_that_failed_is_not_the_last(steps, message, tmp_path):
  flags = {"flags": {"experiment": "maml_sinusoid"}}
  (tmp_path / "config.json").write_text(json.dumps(flags))
  (tmp_path / "metrics.jsonl").touch()
  (tmp_path / "earlier").mkdir()
  for number, steps_then in enumerate((5, steps)):
    path = tmp_path / "earlier" / f"results_{number}.json"
    path.write_text(json.dumps({"steps": steps_then}))
  done = subprocess.run(
    [sys.executable, "-m", "experiments.maml_sinusoid"]
    + [f"--workdir={tmp_path}", "--eval_tasks=7", "--replay_step=70000"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 2
  assert message in done.stderr


def test_stages_keep_the_flags_that_their_training_depends_on():
  """Those that draw its data, and the inner steps of what it learns from."""
  shared = ROOT / "experiments" / "shared"
  drawn = {
    path.stem
    for path in shared.glob("*.py")
    if "default_rng(FLAGS.eval_seed)" in path.read_text()
  }
  assert {"small_images", "turned_alphabets"} <= drawn
  found = []
  for path in sorted((ROOT / "experiments").glob("*.py")):
    text = path.read_text()
    made = re.search(r"Stages\((.*)\)", text)
    if not made:
      continue
    needed = {
      "eval_seed": any(re.search(rf"\b{name}\b", text) for name in drawn),
      "eval_inner_steps": "learner(FLAGS.eval_inner_steps)" in text,
    }
    for flag, is_needed in needed.items():
      if is_needed:
        found.append(path.stem)
        assert f'"{flag}"' in made[1], path
  assert len(found) == 4
