"""What comes between the steps of a long run: signals, and no step at all."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from absl import logging


@contextlib.contextmanager
def stalls_noticed(step: int, seconds: float) -> Iterator[None]:
  """Warns whenever the body has taken so many seconds more."""
  ended = threading.Event()

  def watch() -> None:
    waited = seconds
    while not ended.wait(seconds):
      logging.warning(
        "no step has ended for %g s, since step %d: the device or another "
        "process may hang. A checkpoint is from before it.",
        waited,
        step,
      )
      waited += seconds

  if seconds > 0:
    threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    ended.set()


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
