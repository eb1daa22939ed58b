"""The folder of a run: whose it is, and what it is told of."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax import results
from metajax.evaluation import Estimate

CONFIG = {"experiment": "one", "steps": 3}


def _open_elsewhere(workdir):
  """Opens the folder in another process; returns how that ended."""
  script = (
    "import pathlib, sys\n"
    "from metajax.results import open_workdir\n"
    f"open_workdir(pathlib.Path(sys.argv[1]), {CONFIG!r})\n"
  )
  return subprocess.run(
    [sys.executable, "-c", script, str(workdir)],
    cwd=Path(metajax.__file__).parents[1],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_folder_belongs_to_one_process_as_long_as_it_lives(tmp_path):
  done = _open_elsewhere(tmp_path / "run")
  assert done.returncode == 0, done.stderr
  results.open_workdir(tmp_path / "run", CONFIG)
  done = _open_elsewhere(tmp_path / "run")
  assert done.returncode != 0
  assert done.stderr.splitlines()[-1] == (
    f"ValueError: --workdir={tmp_path / 'run'} is in use by another process: "
    "wait for it, or choose another."
  )


def test_folder_of_a_process_killed_while_it_began_is_free(tmp_path):
  (tmp_path / "config.json.17.tmp").write_text('{"fla')
  results.open_workdir(tmp_path, CONFIG)
  assert json.loads((tmp_path / "config.json").read_text())["flags"] == CONFIG
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("key", ["git_commit", "versions", "device"])
def test_run_that_began_in_another_environment_is_told(key, tmp_path, caplog):
  results.open_workdir(tmp_path / "same", CONFIG)
  assert not caplog.records
  folder = tmp_path / "other"
  folder.mkdir()
  began = results.environment() | {key: "other"}
  results.write_json(
    folder / "config.json", {"flags": CONFIG, "environment": began}
  )
  results.open_workdir(folder, CONFIG)
  (record,) = caplog.records
  assert f"the run began with another {key} " in record.getMessage()
  # What it began with stays on record.
  stored = json.loads((folder / "config.json").read_text())
  assert stored["environment"] == json.loads(json.dumps(began))


def _refuse(constant):
  raise AssertionError(f"{constant} is no JSON")


def test_results_are_json_whatever_the_numbers_are(tmp_path):
  metrics = {
    "loss": Estimate(math.nan, math.inf, 3),
    "score": Estimate(0.5, 0.1, 3),
  }
  path = results.write_results(
    tmp_path,
    experiment="one",
    protocol={"scale": np.float32(-np.inf), "rates": jnp.array([0.5, jnp.nan])},
    metrics=metrics,
    wall_seconds=1.0,
    compile_seconds=np.float64(0.5),
    steps=np.int64(3),
    seed=0,
  )
  found = json.loads(path.read_text(), parse_constant=_refuse)
  assert found["metrics"]["loss"] == {
    "mean": "nan",
    "ci95": "inf",
    "num_tasks": 3,
  }
  assert found["metrics"]["score"]["mean"] == 0.5
  assert found["protocol"] == {"scale": "-inf", "rates": [0.5, "nan"]}
  assert (found["steps"], found["compile_seconds"]) == (3, 0.5)
  # And `float` reads them.
  assert math.isnan(float(found["metrics"]["loss"]["mean"]))


def _configured(folder):
  """A folder as a process leaves it that ends before the first metrics."""
  (folder / "stage" / "checkpoints").mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"flags": CONFIG}))
  return folder


def test_run_that_has_not_begun_takes_other_flags(tmp_path):
  folder, other = _configured(tmp_path / "run"), {**CONFIG, "steps": 4}
  results.open_workdir(folder, other)
  written = json.loads((folder / "config.json").read_text())
  assert written["flags"] == other
  assert written["environment"]["platform"]


@pytest.mark.parametrize(
  "file, config, message",
  [
    ("stage/metrics.jsonl", {**CONFIG, "steps": 4}, "--steps=3, not 4: use "),
    ("learner.json", {**CONFIG, "rows": [5, 6]}, "--rows=None, not 5,6: use"),
    (
      "config.json",
      {**CONFIG, "experiment": "two"},
      "holds a run of one, not of two: choose",
    ),
  ],
)
def test_what_is_there_is_not_taken_over(file, config, message, tmp_path):
  folder = _configured(tmp_path / "run")
  (folder / file).touch()
  before = (folder / "config.json").read_text()
  with pytest.raises(ValueError, match=message):
    results.open_workdir(folder, config)
  assert (folder / "config.json").read_text() == before


def test_what_may_change_moves_the_results_aside(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"flags": CONFIG}))
  (tmp_path / "results.json").write_text("{}")
  (tmp_path / "curve.png").touch()
  longer = {**CONFIG, "steps": 77}
  seen = []

  def may_change(*change):
    seen.append(change)
    return True

  results.open_workdir(tmp_path, longer, may_change=may_change)
  assert seen == [("steps", 3, 77)]
  assert (tmp_path / "earlier" / "results_0.json").read_text() == "{}"
  assert (tmp_path / "earlier" / "curve_0.png").exists()
  assert not [*tmp_path.glob("*.png")]
  written = json.loads((tmp_path / "config.json").read_text())
  assert written["flags"] == longer
  assert results.read_results(tmp_path) is None
  for content in ("{}", "[1]", '{"metrics": []}', '{"metrics": {"loss": 1}}'):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match="damaged .* delete it"):
      results.read_results(tmp_path)


def test_flags_that_are_not_finite_are_json_and_the_same_run(tmp_path):
  config = {**CONFIG, "limit": math.inf, "rate": math.nan}
  folder = tmp_path / "run"
  results.open_workdir(folder, config)
  text = (folder / "config.json").read_text()
  flags = json.loads(text, parse_constant=_refuse)["flags"]
  assert flags == {**CONFIG, "limit": "inf", "rate": "nan"}
  written = tmp_path / "again"
  written.mkdir()
  (written / "config.json").write_text(text)
  results.open_workdir(written, config)  # The same flags, so the same run.
  with pytest.raises(ValueError, match="--limit=inf, not 2.0"):
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "config.json").write_text(text)
    (tmp_path / "third" / "metrics.jsonl").touch()
    results.open_workdir(tmp_path / "third", {**config, "limit": 2.0})
