"""Networks that read examples in order, by name, for `--learner`."""

import functools
from collections.abc import Callable
from typing import Any

from metajax.context.memory import memory_augmented
from metajax.context.snail import snail
from metajax.context.test_time_training import ttt_linear
from metajax.context.transformer_readers import (
  interleaved_transformer,
  paired_transformer,
)
from metajax.learners.reading import Reader
from metajax.learners.recurrent import of_cell, recurrent_reader
from metajax.models.recurrent import Cell, Recurrent


def _cell_reader(cell: Cell, num_outputs: int, **sizes: int) -> Reader:
  return of_cell(cell=cell, **sizes)(num_outputs)


def _network_reader(
  network: Callable[..., Recurrent], num_outputs: int, **sizes: int
) -> Reader:
  return recurrent_reader(network(num_outputs, **sizes), num_outputs)


# `(num_outputs, **sizes) -> Reader` by name.
READERS: dict[str, Callable[..., Reader]] = {
  "lstm": functools.partial(_cell_reader, "lstm"),
  "gru": functools.partial(_cell_reader, "gru"),
  "delta": functools.partial(_cell_reader, "delta"),
  "mann": functools.partial(_network_reader, memory_augmented),
  "ttt": functools.partial(_network_reader, ttt_linear),
  "snail": snail,
  "transformer": paired_transformer,
  "interleaved": interleaved_transformer,
}
# The argument that is the width of a reader's layers.
WIDTHS = {
  **dict.fromkeys(("lstm", "gru", "delta", "mann"), "units"),
  **dict.fromkeys(("ttt", "transformer", "interleaved"), "width"),
  "snail": "channels",
}
# Those that are built for the number of examples of a task, `length`.
OF_LENGTH = ("snail", "interleaved")


def build_reader(
  name: str, *, length: int | None = None, **sizes: Any
) -> Callable[[int], Reader]:
  """Returns `(num_outputs) -> Reader` for `learners.learn_by_reading`.

  Args:
    name: a name of `READERS`.
    length: the most examples of a task, one predicted example included. It is
      used by the readers `OF_LENGTH` only. None: their default.
    **sizes: other arguments of the reader.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in READERS:
    raise ValueError(f"reader {name!r}: must be one of {sorted(READERS)}.")
  if name in OF_LENGTH and length is not None:
    sizes["length"] = length
  return functools.partial(READERS[name], **sizes)
