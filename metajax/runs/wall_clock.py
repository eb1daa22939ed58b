"""Seconds of a run, over all processes that worked on it."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from metajax.results import write_json


def wall_clock(workdir: Path) -> Callable[[], float]:
  """Starts a clock for a script that goes on where it stopped, in parts.

  Args:
    workdir: the folder of the run. `seconds.json` has the seconds so far.

  Returns:
    A function that returns the seconds of the run, and writes them. Call it
    whenever a part is saved: what was computed since the last call, and lost,
    does not count.
  """
  path = workdir / "seconds.json"
  before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
  began = time.perf_counter()

  def seconds() -> float:
    total = before + time.perf_counter() - began
    write_json(path, {"seconds": total})
    return total

  return seconds
