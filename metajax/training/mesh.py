"""The devices a run uses, as a mesh with one axis over tasks."""

from collections.abc import Sequence

import jax
import numpy as np

TASKS = "tasks"


def task_mesh(
  meta_batch: int, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Returns a mesh over which a meta-batch divides evenly.

  Args:
    meta_batch: tasks per meta-step.
    devices: the devices to use, all local ones if None. Of these the most are
      taken that divide `meta_batch`.

  Raises:
    ValueError: if `meta_batch` is not positive.
  """
  if meta_batch < 1:
    raise ValueError(f"meta_batch={meta_batch}: must be 1 or more.")
  devices = jax.local_devices() if devices is None else list(devices)
  count = max(n for n in range(1, len(devices) + 1) if meta_batch % n == 0)
  return jax.sharding.Mesh(np.asarray(devices[:count]), (TASKS,))
