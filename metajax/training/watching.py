"""What comes between the steps of a long run: signals, and no step at all."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging


@contextlib.contextmanager
def stalls_noticed(seconds: float) -> Iterator[Callable[[int], None]]:
  """Yields `beat(step)`, and warns where it is not called again and again.

  Args:
    seconds: after which it warns, each time that they have passed; 0: never.
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
  """Collects the first SIGINT or SIGTERM instead of dying of it."""
  caught: list[int] = []
  previous: dict[int, Any] = {}

  def put_back() -> None:
    for signum, handler in previous.items():
      signal.signal(signum, handler)

  def catch(signum: int, frame: Any) -> None:
    del frame
    caught.append(signum)
    # Not print, which may be what the signal came into.
    os.write(2, b"stopping after a checkpoint; once more to leave at once\n")
    put_back()

  for signum in (signal.SIGINT, signal.SIGTERM):
    previous[signum] = signal.signal(signum, catch)
  try:
    yield caught
  finally:
    put_back()
