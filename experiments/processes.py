"""How a script becomes one of several processes that are one run."""

import contextlib
import os
import sys

import jax
from absl import flags

# Seconds after which a process that says nothing is taken for dead, and those
# that processes wait for each other at the start.
HEARTBEAT, START = 30, 120


def _define(values: flags.FlagValues) -> flags.FlagValues:
  flags.DEFINE_string(
    "coordinator",
    None,
    "Where several processes, each started with the same flags, are one run: "
    "the HOST:PORT at which the first of them listens; or auto, to ask SLURM, "
    "Open MPI, Kubernetes or the TPU.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num_processes",
    None,
    "Of --coordinator=HOST:PORT.",
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_integer(
    "process_id",
    None,
    "Of this process, from 0.",
    lower_bound=0,
    flag_values=values,
  )
  return values


_define(flags.FLAGS)


def join_early() -> None:
  """Joins the other processes before anything is computed.

  Of flags that are not right, `join` will tell.
  """
  with contextlib.suppress(flags.Error, ValueError):
    values = _define(flags.FlagValues())
    values(sys.argv, known_only=True)
    join(values)


def join(values: flags.FlagValues = flags.FLAGS) -> None:
  """Joins the other processes, unless that is done already.

  Raises:
    ValueError: for flags that do not fit. (Where the others do not come, JAX
      ends the process, after START seconds.)
  """
  address, number, place = (
    values[name].value
    for name in ("coordinator", "num_processes", "process_id")
  )
  by_hand = address not in (None, "auto")
  if by_hand and ":" not in address:
    raise ValueError(f"--coordinator={address}: must be HOST:PORT, or auto.")
  if by_hand != (number is not None) or by_hand != (place is not None):
    raise ValueError(
      "--num_processes and --process_id: needed with --coordinator=HOST:PORT, "
      "and only there."
    )
  if by_hand and place >= number:
    raise ValueError(
      f"--process_id={place}: must be less than --num_processes={number}."
    )
  if not address or jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(
      *((address, number, place) if by_hand else ()),
      heartbeat_timeout_seconds=HEARTBEAT,
      initialization_timeout=START,
    )
  except RuntimeError as error:
    raise ValueError(
      f"--coordinator={address}: the processes do not find each other "
      f"({str(error).splitlines()[0]})."
    ) from error
  if jax.process_index():
    # What all have in common is said once.
    sys.stdout = open(os.devnull, "w")
