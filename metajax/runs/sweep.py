"""A sweep: runs a script at every point of a grid of flags, and makes a table.

Each point is an ordinary run of the script, in its own process and folder. A
point that fails, for example for lack of memory, therefore does not affect the
others. Flags, locks and signals work as in any other run. A process costs the
seconds of its imports. Programs that were compiled before are in the cache.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from metajax.runs import grid, sweep_table, together
from metajax.runs.flags import FLAGS
from metajax.runs.sweep_record import DONE, FAILED, open_record
from metajax.training.logging import tell

flags.DEFINE_string(
  "sweep",
  None,
  "Run every combination of the values of flags, such as 'inner_lr=0.1,0.4 "
  "seed=0..4', each in a folder of --workdir, and write sweep.csv, sweep.md "
  "and sweep.png there. The same command goes on where it stopped.",
)
flags.DEFINE_bool(
  "sweep_together",
  True,
  "Train runs of --sweep that differ only in the seed, in step sizes or in "
  "other numbers of the learner together, in one program, if the script "
  "can. That is faster; results are equal up to rounding. If false, one run "
  "follows the other.",
)
# The most points of one program, which holds the states and temporaries of all.
MOST_TOGETHER = 32
OWN = ("sweep", "sweep_together", "workdir")
# Flags that are for one run only. A sweep refuses them.
REFUSED = (
  "coordinator",
  "num_processes",
  "process_id",
  "replay_step",
  "profile",
)


class Ended(Exception):
  """Ends a sweep with an error, after failed points or a signal."""

  def __init__(self, message: str, code: int):
    super().__init__(message)
    self.code = code


def run(known: Sequence[str]) -> None:
  """Runs the points of --sweep that are not done, and writes the table.

  Args:
    known: the script's own flags.

  Raises:
    ValueError: if the sweep or the folder is not valid.
    Ended: if a point failed, or a signal came.
  """
  for name in REFUSED:
    if name in FLAGS and FLAGS[name].value is not None:
      raise ValueError(
        f"--{name}: is for one run, not for --sweep: leave it out."
      )
  points = grid.points(FLAGS.sweep, known)
  record = open_record(_command(), _given())
  stopped: list[int] = []
  child: subprocess.Popen | None = None

  def stop(signum: int, frame: Any) -> None:
    del frame
    stopped.append(signum)
    if child is not None:
      child.terminate()

  def call(words: Sequence[str], name: str) -> tuple[int, str]:
    """Runs the script, and returns its exit code and its last line."""
    nonlocal child
    child = subprocess.Popen(
      [*record.command, *record.given, *words],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
      # Without it, ^C on the terminal would send the signal twice.
      process_group=0,
    )
    if stopped:  # The signal came while the process began.
      child.terminate()
    last = _follow(child, name)
    code, child = child.wait(), None
    return code, last

  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, stop)
  to_do = [point for point in points if record.status(point)[0] != DONE]
  if len(to_do) < len(points):
    tell(f"{len(points) - len(to_do)} of {len(points)} points are done before")
  for group in _groups(to_do) if _can_be_together() else ():
    if not stopped:
      words = _words_together(group, record.workdir)
      code, last = call(words, f"{len(group)} points together")
      if code and not stopped:
        tell(f"one after the other, then: {last}")
  for number, point in enumerate(to_do, 1):
    if stopped:
      break
    tell(f"[{number}/{len(to_do)}] {point.name}")
    folder = f"--workdir={record.workdir / point.name}"
    code, last = call([*point.arguments, folder], point.name)
    if not stopped:
      record.ended(point, code, last)
  rows = [record.row(point) for point in points]
  print(sweep_table.write(record.workdir, rows))
  if stopped:
    name = signal.Signals(stopped[0]).name
    done = sum(row.status == DONE for row in rows)
    raise Ended(
      f"stopped by {name}; {done} of {len(rows)} points are done, run the same "
      "command to go on.",
      128 + stopped[0],
    )
  failures = [row for row in rows if row.status == FAILED]
  if failures:
    raise Ended(
      f"{len(failures)} of {len(rows)} points failed, the first of them "
      f"{failures[0].folder}: {failures[0].error} The same command tries them "
      "again.",
      2,
    )


def _can_be_together() -> bool:
  """Returns whether the script can train several points in one program."""
  return (
    FLAGS.sweep_together
    and "num_seeds" in FLAGS
    and FLAGS.num_seeds == 1
    and not ("skip_non_finite" in FLAGS and FLAGS.skip_non_finite)
    and FLAGS.logger is None  # Services have a session for one run only.
  )


def _groups(points: Sequence[grid.Point]) -> list[list[grid.Point]]:
  """Returns groups of two or more points that one program can train."""
  alike: dict[str, list[grid.Point]] = {}
  for point in points:
    others = {
      k: v for k, v in point.values.items() if k not in together.numbers()
    }
    if others.get("num_seeds", 1) == 1:
      alike.setdefault(repr(others), []).append(point)
  parts = [
    group[i : i + MOST_TOGETHER]
    for group in alike.values()
    for i in range(0, len(group), MOST_TOGETHER)
  ]
  return [part for part in parts if len(part) > 1]


def _words_together(group: Sequence[grid.Point], workdir: Path) -> list[str]:
  """Returns the flags of a process that trains a group in one program."""
  own: list[dict[str, str]] = []
  shared: list[str] = []
  for point in group:
    values = {"workdir": str(workdir / point.name)}
    shared = []
    for word in point.arguments:
      name, _, value = word.removeprefix("--").partition("=")
      if name in together.numbers():
        values[name] = value
      else:
        shared.append(word)
    own.append(values)
  return [*shared, f"--together={json.dumps(own)}"]


def _command() -> list[str]:
  """Returns the words that start this script again, without its flags."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  return [sys.executable, *(["-m", spec.name] if spec else [sys.argv[0]])]


def _given() -> list[str]:
  """Returns the flags that were given, without those of the sweep itself."""
  words: list[str] = []
  for name in sorted(FLAGS):
    flag = FLAGS[name]
    if flag.present and name == flag.name and name not in OWN:
      words += flag.serialize().split("\n")
  return words


def _follow(child: subprocess.Popen, name: str) -> str:
  """Prints a run's output, each line with its name. Returns the last line."""
  assert child.stdout is not None
  last = ""
  for line in child.stdout:
    if line.strip():
      last = line.strip()
      tell(f"[{name}] {line.rstrip()}")
  child.stdout.close()
  return last
