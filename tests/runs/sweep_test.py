"""A sweep: its points, what goes on, what stops it, and its table."""

import csv
import json
import math
import re
import signal
import sys

import pytest
from absl.testing import flagsaver
from PIL import Image

from metajax.evaluation import Estimate
from metajax.runs import (
  grid,
  learner_options,  # noqa: F401 Defines the options of the learners.
  sweep,
  sweep_record,
  sweep_table,
)
from metajax.runs.flags import FLAGS, refuse_extremes
from metajax.runs.sweep_table import Row

OWN = ["inner_lr", "seed", "steps", "learner", "must_save", "workdir", "memory"]
refuse_extremes(FLAGS[name] for name in OWN)  # As a script does.

# In the place of a script: it fails at some points, and counts its calls.
STUB = """
import json, os, pathlib, signal, sys, time
words = [word for word in sys.argv[1:] if "=" in word]
flags = dict(word[2:].split("=", 1) for word in words)
folder = pathlib.Path(flags["workdir"])
folder.mkdir(exist_ok=True)
with (folder / "calls").open("a") as file:
  print(sorted(sys.argv[1:-1]), file=file)
rate, seed = float(flags["inner_lr"]), int(flags["seed"])
if rate == 9:
  sys.exit("error: the loss of step 3 is not finite.")
if flags.get("steps") == "77" and seed == 1 and not (folder / "again").exists():
  (folder / "again").touch()
  os.kill(os.getppid(), signal.SIGINT)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  time.sleep(60)
metric = {"mean": 10 * rate + seed, "ci95": 0.5, "num_tasks": 100}
results = {"metrics": {"mse": metric}, "wall_seconds": 2.0}
(folder / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs a sweep of the stub in `tmp_path / "w"`."""
  stub = tmp_path / "stub.py"
  stub.write_text(STUB)
  monkeypatch.setattr(sweep, "_command", lambda: [sys.executable, str(stub)])
  # It lasts as long as the process, which here runs several sweeps.
  monkeypatch.setattr(sweep_record, "lock", lambda folder: None)
  handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

  @flagsaver.flagsaver()
  def run(text, *arguments):
    FLAGS(
      ["stub", f"--sweep={text}", f"--workdir={tmp_path / 'w'}"] + [*arguments]
    )
    sweep.run(OWN)

  yield run
  for signum, handler in handlers.items():
    signal.signal(signum, handler)


def _rows(workdir):
  with (workdir / "sweep.csv").open() as file:
    return list(csv.DictReader(file))


def _calls(workdir):
  return {
    p.parent.name: len(p.read_text().splitlines())
    for p in workdir.glob("*/calls")
  }


def test_a_failed_point_is_a_row_and_the_others_go_on(run, tmp_path, capsys):
  workdir, text = tmp_path / "w", "inner_lr=0.1,9,1e-1 seed=0..1"
  with pytest.raises(ValueError, match="--sweep: inner_lr=0.1 is there twice"):
    run(text)
  text = "inner_lr=9,0.1 seed=0..1"
  with pytest.raises(
    sweep.Ended, match="^2 of 4 points failed, .*seed=0: the "
  ) as end:
    run(text, "--steps=5", "--nomust_save")
  assert end.value.code == 2
  rows = {row["folder"]: row for row in _rows(workdir)}
  failed = rows["inner_lr=9.0,seed=1"]
  assert failed["error"] == "the loss of step 3 is not finite."
  assert (failed["status"], failed["mse"]) == ("failed", "")
  good = rows["inner_lr=0.1,seed=1"]
  assert (good["status"], float(good["mse"]), good["mse_ci95"]) == (
    "done",
    2.0,
    "0.5",
  )
  printed = capsys.readouterr().out
  assert (workdir / "sweep.md").read_text() in printed
  # t of one degree of freedom is 12.706; the means are 1 and 2.
  mean = next(
    row
    for row in _rows(workdir)
    if (row["seed"], row["inner_lr"]) == ("all", "0.1")
  )
  assert float(mean["mse"]) == 1.5
  assert float(mean["mse_ci95"]) == pytest.approx(
    12.7062 * 0.5**0.5 / 2**0.5, rel=1e-5
  )
  assert mean["status"] == "2 of 2 done"
  assert "1.5000 +- 6.3531" in printed


def test_what_is_done_is_not_repeated(run, tmp_path):
  workdir = tmp_path / "w"
  for text in (
    "inner_lr=1,2 seed=0",
    "inner_lr=1,2,9 seed=0",
    "inner_lr=1,9 seed=0",
  ):
    try:
      run(text)
    except sweep.Ended:
      assert "9" in text
  names = [f"inner_lr={rate},seed=0" for rate in ("1.0", "2.0", "9.0")]
  # Those that failed are tried again.
  assert _calls(workdir) == dict(zip(names, (1, 1, 2), strict=True))
  run("inner_lr=1 seed=0", "--steps=6")  # Which is another run.
  assert _calls(workdir)[names[0]] == 2
  assert [row["folder"] for row in _rows(workdir)] == names[:1]


def test_a_signal_stops_the_point_and_the_same_command_goes_on(run, tmp_path):
  workdir, arguments = tmp_path / "w", ("inner_lr=1 seed=0..2", "--steps=77")
  with pytest.raises(
    sweep.Ended, match="stopped by SIGINT; 1 of 3 points"
  ) as end:
    run(*arguments)
  assert end.value.code == 130
  assert [r["status"] for r in _rows(workdir)[:3]] == [
    "done",
    "not run",
    "not run",
  ]
  run(*arguments)
  assert sorted(_calls(workdir).values()) == [1, 1, 2]
  again = _rows(workdir)
  (workdir / again[1]["folder"] / "again").unlink()
  with pytest.raises(sweep.Ended, match="stopped by SIGINT; 1 of 3 points"):
    run(*arguments, "--memory=remat")  # Results of other flags are not shown.
  assert [r["mse"] != "" for r in _rows(workdir)[:3]] == [True, False, False]
  run(*arguments, "--memory=remat")
  assert [r["status"] for r in _rows(workdir)] == 3 * ["done"] + ["3 of 3 done"]


@pytest.mark.parametrize("name", ["other", "sweep.json", "config.json"])
def test_folders_that_are_no_sweep_are_refused_and_kept(name, run, tmp_path):
  path = tmp_path / "w" / name
  path.parent.mkdir()
  path.write_text("mine")
  with pytest.raises(ValueError, match="no sweep: choose|unreadable"):
    run("seed=0..1 inner_lr=1")
  assert path.read_text() == "mine"
  assert len(list(path.parent.iterdir())) == 1


def test_a_folder_belongs_to_one_script(run, tmp_path):
  run("seed=0 inner_lr=1")
  path = tmp_path / "w" / "sweep.json"
  path.write_text(
    json.dumps({**json.loads(path.read_text()), "command": ["x", "y"]})
  )
  with pytest.raises(ValueError, match="holds a sweep of y: choose another"):
    run("seed=0 inner_lr=1")


def test_points_are_every_combination_the_last_flag_fastest():
  found = grid.points("memory=plain,remat seed=3..4 inner_lr=1e-3", OWN)
  assert [point.name for point in found] == [
    "memory=plain,seed=3,inner_lr=0.001",
    "memory=plain,seed=4,inner_lr=0.001",
    "memory=remat,seed=3,inner_lr=0.001",
    "memory=remat,seed=4,inner_lr=0.001",
  ]
  assert found[1].values == {"memory": "plain", "seed": 4, "inner_lr": 0.001}
  assert found[1].arguments == ("--memory=plain", "--seed=4", "--inner_lr=1e-3")
  # Nothing is left of them in the flags.
  assert FLAGS["seed"].value == 0 and not FLAGS["seed"].present


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "--sweep: is empty: give flags and their values, .*"),
    (
      "seed",
      "--sweep: 'seed' must be FLAG=VALUE,VALUE or FLAG=FIRST..LAST, .*",
    ),
    ("seed=", "--sweep: 'seed=' must be .*"),
    ("seed=1,,2", "--sweep: 'seed=1,,2' must be .*"),
    ("seed=1, 2", "--sweep: 'seed=1,' must be .*"),
    ("sed=1", "--sweep: this script has no flag 'sed'; --help shows .*"),
    ("workdir=a,b", "--sweep: --workdir says where or how a run is made, .*"),
    ("must_save=true", "--sweep: --must_save says where or how .*"),
    ("seed=1 seed=2", "--sweep: seed is there twice: give it once."),
    ("seed=1,2,1", "--sweep: seed=1 is there twice: give it once."),
    ("seed=0..3,2", "--sweep: seed=2 is there twice: give it once."),
    ("seed=x", "--sweep: seed=x: invalid literal .*"),
    ("seed=-1", "--sweep: seed=-1: -1 is not an integer in the range .*"),
    ("seed=3..1", "--sweep: seed=3..1: a range is FIRST..LAST of .*"),
    (
      "seed=0..99999999",
      "--sweep: seed=0..99999999: .* 10000 numbers at most.",
    ),
    ("inner_lr=0..3", "--sweep: inner_lr=0..3: a range is .*"),
    ("inner_lr=nan", "--sweep: inner_lr=nan: must be a finite number"),
    ("inner_lr=-1", "--sweep: inner_lr=-1: -1.0 is not a non-negative number"),
    ("memory=all", "--sweep: memory=all: value should be one of <.*>"),
    (
      "seed=0..999 steps=1..999",
      "--sweep: has 999000 points, may have 10000 .*",
    ),
  ],
)
def test_what_is_no_sweep_is_named(text, message):
  with pytest.raises(ValueError) as error:
    grid.points(text, OWN)
  (line,) = str(error.value).splitlines()
  assert re.fullmatch(message, line), line


@flagsaver.flagsaver()
def test_a_flag_that_is_given_beside_its_sweep_is_refused():
  FLAGS(["stub", "--seed=3"])
  with pytest.raises(ValueError, match="--sweep: --seed is given beside"):
    grid.points("seed=0..1", OWN)


@pytest.mark.parametrize(
  "given, text",
  [([], "learner=imaml,cavia"), (["--learner=imaml"], "seed=0..1")],
)
@flagsaver.flagsaver()
def test_options_of_another_learner_are_refused_before_a_point_runs(
  given, text
):
  """Each point would refuse it, after the points before it had trained."""
  FLAGS(["stub", *given])
  with pytest.raises(
    ValueError, match="^--sweep: --num_context is for .*cavia"
  ):
    grid.points(f"{text} num_context=2,4", [*OWN, "num_context"])


@flagsaver.flagsaver()
def test_options_of_the_learner_are_swept():
  FLAGS(["stub", "--learner=cavia"])
  assert len(grid.points("num_context=2,4", [*OWN, "num_context"])) == 2


def _row(rate, seed, mean, **values):
  values = {"inner_lr": rate, **values, "seed": seed}
  return Row(values, {"mse": Estimate(mean, 0.1, 9)}, "done", 1.0, "x", "")


@pytest.mark.parametrize(
  "rows",
  [
    [_row("0.1", "0", 1.0)],
    [_row("0.1", "0", 1.0), _row("0.1", "1", 2.0)],
    [
      _row(r, s, 1.0, learner=n) for r in ("1", "9") for n in "ab" for s in "01"
    ],
    [_row(r, "0", math.nan) for r in ("mixed", "plain")],
    [_row("0.1", "0", 1.0)._replace(status="failed", error="why|so")],
    [
      Row({"seed": s}, {"mse": Estimate(1.0, 0.1, 9)}, "done", 1.0, "x", "")
      for s in "01"
    ],
  ],
)
def test_every_table_can_be_written_and_drawn(rows, tmp_path):
  text = sweep_table.write(tmp_path, rows)
  with Image.open(tmp_path / "sweep.png") as image:
    assert image.size == (440, 352)
  tables = [line for line in text.splitlines() if line.startswith("|")]
  assert len({len(line) for line in tables}) <= 2
  assert len(_rows(tmp_path)) >= len(rows)


def test_a_sweep_of_which_nothing_came_is_a_table_alone(tmp_path):
  rows = [Row({"seed": s}, {}, "failed", math.nan, "x", "why") for s in "01"]
  assert "0 of 2 done" in sweep_table.write(tmp_path, rows)
  assert not (tmp_path / "sweep.png").exists()
