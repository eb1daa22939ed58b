"""Estimates the bytes that devices exchange in a step, and the time for it."""

import re

import jax
import numpy as np

# Name, number of devices, bytes/s that leave a device on a ring, seconds of a
# hop. The rates are from data sheets (NVLink 4: 900 GB/s in both directions
# together; TPU v5e: 4 ports of 400 Gbit/s, of which the ring uses one). The
# seconds of a hop are assumed.
TARGETS = (
  ("8 x H100, NVLink", 8, 450e9, 5e-6),
  ("TPU v5e slice 2x4", 8, 50e9, 2e-6),
)


def all_reduce_seconds(size: int, n: int, rate: float, hop: float) -> float:
  """Returns the estimated seconds of an all-reduce.

  On a ring of n devices they are `2 (n - 1) (size / n / rate + hop)`. A step of
  T seconds on one device takes this much longer on n devices with the same
  number of tasks on each. The efficiency is at least 90% if T is at least nine
  times the seconds of the all-reduce.

  Args:
    size: bytes that are summed.
    n: number of devices.
    rate: bytes a second that leave a device.
    hop: seconds from one device to the next.
  """
  return 2 * (n - 1) * (size / n / rate + hop)


def all_reduce_bytes(executable: jax.stages.Compiled) -> int:
  """Sums the bytes that a program's all-reduces return in a meta-step."""
  total = 0
  for line in executable.as_text().splitlines():
    found = re.match(r".* = (.*) all-reduce(-start)?\(", line)
    for kind, shape in re.findall(
      r"([a-z]+\d+)\[([\d,]*)\]", found[1] if found else ""
    ):
      numbers = np.prod([int(x) for x in shape.split(",") if x], dtype=int)
      total += int(numbers) * int(re.sub(r"\D", "", kind)) // 8
  return total
