"""Runs side by side: what is read, drawn and told of them."""

import json
import re

import pytest
from PIL import Image

from metajax import compare_runs
from metajax.runs import curves


def _run(folder, rate, values):
  """A run of 10 steps of 4 tasks a line, and a validation in between."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps({"flags": {"meta_batch": 4}}))
  lines = []
  for number, value in enumerate(values, 1):
    line = {"step": 10 * number, "loss": 1.0, "tasks_per_second": rate}
    if value is not None:
      line["validation/accuracy"] = value
    lines.append(json.dumps({"step": 10 * number - 5, "validation/other": 1}))
    lines.append(json.dumps(line))
  (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _seeds_run(folder, seed, values, seconds, **flags):
  """A run that has the time on record, a line each 10 steps."""
  folder.mkdir(parents=True)
  flags |= {"meta_batch": 4, "seed": seed}
  (folder / "config.json").write_text(json.dumps({"flags": flags}))
  lines = [
    json.dumps({"step": 10 * i, "wall_seconds": s, "validation/accuracy": v})
    for i, (v, s) in enumerate(zip(values, seconds, strict=True), 1)
  ]
  (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _compare(capsys, *arguments):
  """Returns the words of each row of the table."""
  compare_runs.main(list(map(str, arguments)))
  lines = capsys.readouterr().out.splitlines()
  return [line.split() for line in lines[1:-1]]


def test_time_is_that_of_the_meta_steps(tmp_path, capsys):
  # 40 tasks a line: 2 s at 20 tasks a second, 5 s at 8.
  quick, slow, out = (tmp_path / name for name in ("quick", "slow", "out.png"))
  _run(quick, 20, [None, 0.5, None, 0.7])
  _run(slow, 8, [None, 0.6, None, 0.9])
  assert _compare(capsys, quick, slow, "--log", f"--out={out}") == [
    ["quick", "40", "8.0", "0.7000"],
    ["after", "8", "s", "40", "8.0", "0.7000"],
    ["slow", "40", "20.0", "0.9000"],
    # When the quick one has ended, after 8 s: the value at 10 s is nearest.
    ["after", "8", "s", "20", "10.0", "0.6000"],
  ]
  with Image.open(out) as image:
    assert image.size == (990, 396)


def test_between_two_lines_time_goes_on_evenly(tmp_path, capsys):
  _run(tmp_path / "run", 8, [None, None])
  metric, out = "--metric=validation/other", f"--out={tmp_path / 'out.png'}"
  # 5 s a line: half of the second of them.
  rows = _compare(capsys, tmp_path / "run", metric, out)
  assert rows == [["run", "15", "7.5", "1.0000"]]


def test_a_last_line_that_is_being_written_is_left_out(tmp_path, capsys):
  _run(tmp_path / "run", 8, [0.25, 0.5])
  with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
    file.write('{"step": 30, "validation/acc')
  rows = _compare(capsys, tmp_path / "run", f"--out={tmp_path / 'out.png'}")
  assert rows == [["run", "20", "10.0", "0.5000"]]


def test_seeds_are_one_line_with_its_interval(tmp_path, capsys):
  sweep = tmp_path / "sweep"
  for seed, values, seconds in (
    (0, [0.1, 0.5], [3, 8]),
    (1, [0.3, 0.7], [5, 12]),
    # Not yet at its end, and so not the mean either.
    (2, [0.2], [4]),
  ):
    _seeds_run(sweep / f"lr=1,seed={seed}", seed, values, seconds, lr=1)
  _seeds_run(sweep / "lr=2,seed=0", 0, [0.6, 0.4], [1, 2], lr=2)
  (sweep / "lr=3,seed=0").mkdir()  # It failed before it began.
  (sweep / "sweep.json").write_text("{}")
  # t of two degrees of freedom is 4.303; 0.1 the deviation of the three seeds.
  ci95 = 4.302653 * 0.1 / 3**0.5
  assert _compare(capsys, sweep, f"--out={tmp_path / 'out.png'}") == [
    ["lr=1", "(3", "seeds)", "10", "4.0", "0.2000", "+-", f"{ci95:.4f}"],
    ["after", "2", "s", "10", "4.0", "0.2000", "+-", f"{ci95:.4f}"],
    ["lr=2,seed=0", "20", "2.0", "0.4000"],
    ["after", "2", "s", "20", "2.0", "0.4000"],
  ]


@pytest.mark.parametrize(
  "names, legend",
  [
    (("run_1", "run_10"), "run (2 seeds)"),
    (("lr=0.1-seed-1", "lr=0.1-seed-11"), "lr=0.1 (2 seeds)"),
    (("new_seed_1", "new_seed_10"), "new (2 seeds)"),
    (("seed=1,lr=0.1", "seed=10,lr=0.1"), "lr=0.1 (2 seeds)"),
    (("first", "final"), "2 seeds"),
    (("seed=1", "seed=10"), "2 seeds"),
  ],
)
def test_the_name_of_several_seeds_has_no_part_of_a_number_or_word(
  names, legend
):
  record = {"step": 1, "loss": 0.5, "wall_seconds": 1.0}
  runs = [
    curves.Run(name, {"seed": seed}, [record])
    for name, seed in zip(names, (1, 10), strict=True)
  ]
  (curve,) = curves.curves(runs, "loss")
  assert curve.name == legend


def test_a_rate_counts_the_tasks_of_all_seeds():
  """5 steps of 3 seeds with 4 tasks each, at 6 tasks a second, are 10 s."""
  config = {"meta_batch": 4, "num_seeds": 3}
  record = {"step": 5, "loss": 0.5, "tasks_per_second": 6.0}
  (curve,) = curves.curves([curves.Run("run", config, [record])], "loss")
  assert curve.seconds == pytest.approx([10.0])


def test_the_same_run_made_twice_is_two_lines(tmp_path, capsys):
  one, two = tmp_path / "one", tmp_path / "two"
  for folder in (one, two):
    _seeds_run(folder, 0, [0.5], [3])
  rows = _compare(capsys, one, two, f"--out={tmp_path / 'out.png'}")
  assert [row[0] for row in rows] == ["one", "after", "two", "after"]


@pytest.mark.parametrize(
  "folders, metric, message",
  [
    (["none"], "validation/accuracy", "error: .*none is no folder of a run"),
    (["file"], "validation/accuracy", "error: .*file is no folder of a run"),
    (["list"], "validation/accuracy", "error: .*list is no folder of a run"),
    (
      ["run", "list/run"],
      "validation/accuracy",
      "error: .*: two of the folders have the same name",
    ),
    (
      ["run"],
      "accuracy",
      "error: --metric=accuracy: .*run has none recorded; give one of loss, "
      "tasks_per_second, validation/accuracy, validation/other.",
    ),
    (
      ["noise"],
      "accuracy",
      "error: --metric=accuracy: .*noise has none .* has no whole line yet.",
    ),
  ],
)
def test_what_is_missing_is_named(folders, metric, message, tmp_path, capsys):
  _run(tmp_path / "run", 20, [0.5])
  _run(tmp_path / "list", 20, [0.5])
  (tmp_path / "list" / "config.json").write_text("[1, 2]")
  (tmp_path / "file").write_text("")
  _run(tmp_path / "noise", 20, [0.5])
  (tmp_path / "noise" / "metrics.jsonl").write_bytes(bytes(range(256)))
  out = tmp_path / "out.png"
  with pytest.raises(SystemExit, match="2"):
    compare_runs.main(
      [
        *[str(tmp_path / folder) for folder in folders],
        *[f"--metric={metric}", f"--out={out}"],
      ]
    )
  line = capsys.readouterr().err
  assert re.match(message, line)
  assert line.count("\n") == 1
  assert not out.exists()
