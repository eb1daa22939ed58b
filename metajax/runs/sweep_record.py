"""The record of a sweep in its folder: the command, and each point's status."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from metajax.results import lock, write_json
from metajax.runs import sweep_table
from metajax.runs.flags import FLAGS
from metajax.runs.grid import Point
from metajax.training.logging import tell

SWEEP = "sweep.json"
DONE, FAILED, NOT_RUN = "done", "failed", sweep_table.NOT_RUN


class Record(NamedTuple):
  """A sweep's folder and the content of its `sweep.json`.

  Attributes:
    workdir: the folder.
    command: the words that start the script, without its flags.
    given: the flags that all points have in common.
    points: the arguments, the status and the error of each point, by its name.
  """

  workdir: Path
  command: list[str]
  given: list[str]
  points: dict[str, dict[str, Any]]

  def arguments(self, point: Point) -> list[str]:
    """Returns the flags of a point's run, without --workdir."""
    return [*self.given, *point.arguments]

  def status(self, point: Point) -> tuple[str, str]:
    """Returns the status and the error of a point's run with these flags."""
    found = self.points.get(point.name)
    if found is None or (
      sorted(found["arguments"]) != sorted(self.arguments(point))
    ):
      return NOT_RUN, ""
    results = self.workdir / point.name / "results.json"
    if found["status"] == DONE and not results.exists():
      return NOT_RUN, ""
    return found["status"], found["error"]

  def ended(self, point: Point, code: int, last: str) -> None:
    """Records the end of a point's run, by its exit code and its last line."""
    results = self.workdir / point.name / "results.json"
    failed = code != 0 or not results.exists()
    self.points[point.name] = {
      "arguments": self.arguments(point),
      "status": FAILED if failed else DONE,
      "error": last.removeprefix("error: ") if failed else "",
    }
    self.write()

  def write(self) -> None:
    """Writes `sweep.json`."""
    about = {
      "command": self.command,
      "flags": self.given,
      "sweep": FLAGS.sweep,
      "points": self.points,
    }
    write_json(self.workdir / SWEEP, about)

  def row(self, point: Point) -> sweep_table.Row:
    """Returns the point's row of the table."""
    status, error = self.status(point)
    folder = self.workdir / point.name
    return sweep_table.read(folder, point.values, status, error)


def open_record(command: list[str], given: list[str]) -> Record:
  """Makes or reopens the folder of the sweep.

  Raises:
    ValueError: if the folder holds anything but this script's sweep, or if
      another process uses it.
  """
  words = json.dumps([FLAGS.sweep.split(), given])
  digest = hashlib.sha256(words.encode()).hexdigest()[:8]
  script = Path(sys.argv[0]).stem
  workdir = Path(FLAGS.workdir or f"runs/{script}-sweep-{digest}")
  path, points = workdir / SWEEP, {}
  if path.exists():
    try:
      found = json.loads(path.read_text())
      points, before = dict(found["points"]), found["command"][1:]
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{path} is unreadable ({error}); choose another --workdir."
      ) from error
    if before != command[1:]:
      raise ValueError(
        f"--workdir={workdir} holds a sweep of {' '.join(before)}: choose "
        "another."
      )
  elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise ValueError(
      f"--workdir={workdir} exists and is no sweep: choose a new or an empty "
      "folder."
    )
  workdir.mkdir(parents=True, exist_ok=True)
  lock(workdir)
  record = Record(workdir, command, given, points)
  record.write()
  tell(f"sweep in {workdir}")
  return record
