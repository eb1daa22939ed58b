"""Joins several processes to one run."""

import os
import socket
import sys
import time
from typing import Any

import jax
from absl import flags

# Seconds without a heartbeat after which a process counts as dead, and seconds
# that processes wait for each other at the start.
HEARTBEAT, START = 30, 120


flags.DEFINE_string(
  "coordinator",
  None,
  "Address HOST:PORT of the first of several processes that are one run, "
  "all started with the same flags; or auto, to ask SLURM, Open MPI, "
  "Kubernetes or the TPU.",
)
flags.DEFINE_integer(
  "num_processes",
  None,
  "Number of processes of the run, with --coordinator=HOST:PORT.",
  lower_bound=1,
)
flags.DEFINE_integer(
  "process_id",
  None,
  "Number of this process, from 0, with --coordinator=HOST:PORT.",
  lower_bound=0,
)


def join() -> None:
  """Joins the other processes, if the flags name any.

  Raises:
    ValueError: if the flags do not fit together, or if the first process is not
      there within START seconds. (If another process does not come, JAX ends
      this one.)
  """
  address: str = flags.FLAGS.coordinator or ""
  number, place = flags.FLAGS.num_processes, flags.FLAGS.process_id
  by_hand = address not in ("", "auto")
  host, _, port = address.rpartition(":")
  if by_hand and not (host and port.isdecimal()):
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
  if not address:
    return
  if by_hand and place > 0:
    _wait_for(host.strip("[]"), int(port))
  elif by_hand and number > 1:
    _say(f"waiting for {number - 1} more processes at {address}")
  given: dict[str, Any] = {}
  if by_hand:
    given = {
      "coordinator_address": address,
      "num_processes": number,
      "process_id": place,
    }
  try:
    jax.distributed.initialize(
      **given,
      heartbeat_timeout_seconds=HEARTBEAT,
      initialization_timeout=START,
    )
  except RuntimeError as error:
    raise ValueError(
      f"--coordinator={address}: the processes do not find each other "
      f"({str(error).splitlines()[0]})."
    ) from error
  except ValueError as error:
    if by_hand:
      raise
    raise ValueError(
      "--coordinator=auto: no SLURM, Open MPI, Kubernetes or TPU says here "
      "what the processes are; give --coordinator=HOST:PORT, --num_processes "
      "and --process_id."
    ) from error
  if jax.process_index():
    # All processes print the same lines, so only the first one prints them.
    sys.stdout = open(os.devnull, "w")


def _wait_for(host: str, port: int) -> None:
  """Waits until the first process listens. JAX would end this one in C++.

  Raises:
    ValueError: if the first process does not listen within START seconds.
  """
  end, told = time.monotonic() + START, False
  while True:
    try:
      socket.create_connection((host, port), timeout=5).close()
      return
    except OSError as error:
      if time.monotonic() > end:
        raise ValueError(
          f"--coordinator={host}:{port}: no first process listens there after "
          f"{START} s ({error}): start the one with --process_id=0, or mend "
          "the address."
        ) from error
      if not told:
        _say(f"waiting for the first process at {host}:{port}")
      told = True
      time.sleep(0.5)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
