"""The folder of a run: whose it is, and what it is told of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import metajax
from metajax import results

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
  (tmp_path / "config.json.tmp").write_text('{"fla')
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
