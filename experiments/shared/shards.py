"""The flag --shards, the number of replay buffers on any number of devices."""

import jax
from absl import flags

from metajax.runs.flags import FLAGS

flags.DEFINE_integer(
  "shards",
  0,
  "Number of buffers over which the replayed data are split. A run can go "
  "on with any number of devices that divides it. 0: one buffer for each "
  "device.",
  lower_bound=0,
)


def num_shards(**numbers: int) -> int | None:
  """Returns --shards, or None if it is not given.

  Args:
    **numbers: numbers that --shards must divide, by their name in messages.

  Raises:
    ValueError: if --shards does not divide one of them, or is not a multiple of
      the number of processes.
  """
  for name, value in numbers.items():
    if FLAGS.shards and value % FLAGS.shards:
      raise ValueError(f"--shards={FLAGS.shards}: must divide {name}={value}.")
  if FLAGS.shards % jax.process_count():
    raise ValueError(
      f"--shards={FLAGS.shards}: must be a multiple of the "
      f"{jax.process_count()} processes."
    )
  return FLAGS.shards or None
