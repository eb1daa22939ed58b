"""Watches a long run: warns of stalls, and catches signals."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging


@contextlib.contextmanager
def stalls_noticed(seconds: float) -> Iterator[Callable[[int], None]]:
  """Yields `beat(step)`, and warns if it is not called for some time.

  Args:
    seconds: time without a call after which it warns. The warning is repeated
      after each such time. 0: never warn.
  """
  beaten = threading.Event()
  step, running = 0, True

  def beat(now: int) -> None:
    nonlocal step
    step = now
    beaten.set()

  def watch() -> None:
    waited = 0.0
    while running:
      if beaten.wait(seconds):
        beaten.clear()
        waited = 0.0
        continue
      waited += seconds
      logging.warning(
        "no step has ended for %g s, since step %d. If none does, a device or "
        "another process hangs: end the run, and the same command goes on from "
        "its last checkpoint.",
        waited,
        step,
      )

  if seconds > 0:
    threading.Thread(target=watch, daemon=True).start()
  try:
    yield beat
  finally:
    running = False
    beaten.set()


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
  """Catches the first SIGINT or SIGTERM, and yields a list that collects it.

  The second signal has its usual effect.
  """
  caught: list[int] = []
  previous: dict[int, Any] = {}

  def put_back() -> None:
    for signum, handler in previous.items():
      signal.signal(signum, handler)

  def catch(signum: int, frame: Any) -> None:
    del frame
    caught.append(signum)
    # Not print, because the signal may have interrupted a print.
    os.write(2, b"stopping after a checkpoint; once more to leave at once\n")
    put_back()

  for signum in (signal.SIGINT, signal.SIGTERM):
    previous[signum] = signal.signal(signum, catch)
  try:
    yield caught
  finally:
    put_back()
