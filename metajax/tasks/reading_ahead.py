"""Reads data ahead of their use by Grain, in threads or in processes."""

import dataclasses
import importlib.util
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl.flags import FLAGS

THREADS = 4  # That read, if no processes do.
# Results that wait for their use: for all threads, and for each process.
AHEAD_OF_THREADS, AHEAD_OF_PROCESS = 8, 2


def read_ahead(
  make: Callable[[int], Any], numbers: range, workers: int = 0
) -> Iterator[Any]:
  """Yields `make(number)` for each number in order, computed ahead of its use.

  Args:
    make: returns a tree of numpy arrays. With `workers` it must be picklable.
    numbers: the arguments of `make`.
    workers: processes in which `make` runs, with JAX on the CPU; 0: threads of
      this process. A process takes seconds to start.

  Raises:
    ValueError: if `make` raises it, or if Grain is not installed.
    ChildProcessError: if a process ends before its time.
  """
  if importlib.util.find_spec("grain") is None:
    raise ValueError(
      "grain: not installed, and images that stay on the disk are read by it. "
      "Run pip install 'metajax[grain]'."
    )
  import grain  # Only reading needs it.

  threads, buffer = (1, 1) if workers else (THREADS, AHEAD_OF_THREADS)
  results = grain.MapDataset.source(_Results(make, numbers)).to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  )
  if workers:
    _accept_flags()
    # Containers often have little shared memory. Pipes need none.
    options = grain.experimental.DatasetOptions(min_shm_size=2**62)
    results = grain.experimental.WithOptionsIterDataset(results, options)
    results = results.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=AHEAD_OF_PROCESS
      ),
      worker_init_fn=_begin,
    )
  iterator = iter(results)
  try:
    for result, error in _one_by_one(iterator):
      if error is not None:
        raise ValueError(error)
      yield result
  finally:
    iterator.close()  # Ends the processes.


def _one_by_one(iterator: Iterator[Any]) -> Iterator[Any]:
  try:
    yield from iterator
  # Grain raises errors of several kinds.
  except Exception as ended:
    reason = " ".join(f"{type(ended).__name__}: {ended}".split())
    raise ChildProcessError(
      "a process that reads images has ended; run the same command to go on, "
      f"or give --stream_workers=0. ({reason})"
    ) from ended


@dataclasses.dataclass(frozen=True)
class _Results:
  """What Grain reads from: results by their place, with errors as values."""

  make: Callable[[int], Any]
  numbers: range

  def __len__(self) -> int:
    return len(self.numbers)

  def __getitem__(self, place: Any) -> Any:
    try:
      return self.make(self.numbers[place]), None
    except ValueError as error:
      return None, str(error)


def _accept_flags() -> None:
  """Lets Grain read its own flags where a program has not parsed any."""
  for name in FLAGS:
    if name.startswith("grain_") and not FLAGS.is_parsed():
      FLAGS[name].present = 1


def _begin(index: int, count: int) -> None:
  """Prepares a process."""
  del index, count
  # The accelerator is for the program that trains.
  jax.config.update("jax_platforms", "cpu")
  # Control-C goes to all processes. That program stops this one at its end.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()  # It may have been killed.
    os._exit(1)
