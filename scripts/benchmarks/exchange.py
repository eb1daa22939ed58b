"""What devices exchange in a step, and how long that would take elsewhere."""

import re

import jax
import numpy as np

# Name, devices, bytes/s that leave one of them on a ring, seconds a hop. The
# rates are of data sheets (NVLink 4: 900 GB/s both ways; TPU v5e: 4 ports of
# 400 Gbit/s, one of them taken); what a hop takes is assumed.
TARGETS = (
  ("8 x H100, NVLink", 8, 450e9, 5e-6),
  ("TPU v5e slice 2x4", 8, 50e9, 2e-6),
)


def all_reduce_seconds(size: int, n: int, rate: float, hop: float) -> float:
  """Returns what an all-reduce would take, from bytes and data sheets.

  On a ring of n devices that is `2 (n - 1) (size / n / rate + hop)`. A step of
  T seconds on one device then takes that much longer on n with as many tasks
  each; it stays 90% efficient for T of nine times as much and more.

  Args:
    size: bytes that are summed.
    n: devices.
    rate: bytes a second that leave a device.
    hop: seconds from a device to the next.
  """
  return 2 * (n - 1) * (size / n / rate + hop)


def all_reduce_bytes(executable: jax.stages.Compiled) -> int:
  """Sums what a program's all-reduces return, a meta-step's in a loop."""
  total = 0
  for line in executable.as_text().splitlines():
    found = re.match(r".* = (.*) all-reduce(-start)?\(", line)
    for kind, shape in re.findall(
      r"([a-z]+\d+)\[([\d,]*)\]", found[1] if found else ""
    ):
      numbers = np.prod([int(x) for x in shape.split(",") if x], dtype=int)
      total += int(numbers) * int(re.sub(r"\D", "", kind)) // 8
  return total
