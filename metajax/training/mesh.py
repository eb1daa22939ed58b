"""The devices of a run, as a mesh with one axis over tasks."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import variables
from metajax.numerics import check_counts, wide
from metajax.types import Metrics, Params

TASKS = "tasks"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def use_cpu_cores(*, spare_threads: bool = False) -> None:
  """Makes each CPU core a separate JAX device, for `task_mesh` to use.

  This is faster than one device with threads, because tasks are independent and
  the matrix products of one task are too small for threads. On 2 cores, a MAML
  step of conv4-64 (32 tasks, 5-way 1-shot, 1 query) took 0.070 s with two
  devices, and 0.110 s with both cores as one device.

  Call it before JAX computes anything. It does nothing if `XLA_FLAGS` or
  `jax_num_cpu_devices` already set the number of devices.

  Args:
    spare_threads: whether XLA gets two threads for each core, or more if the
      environment variable `NPROC` says so. Steps that factorise many
      matrices on several devices may wait for ever without them. Other steps
      are slower with them: MAML on pooled conv4-32 took 0.20 to 0.24 s instead
      of 0.15 to 0.18 s (three turns on 2 cores).

  Raises:
    RuntimeError: if JAX has already initialised its devices.
  """
  chosen = "xla_force_host_platform_device_count" in os.environ.get(
    "XLA_FLAGS", ""
  )
  # The default is -1.
  if not chosen and jax.config.values["jax_num_cpu_devices"] < 0:
    cores = usable_cores()
    jax.config.update("jax_num_cpu_devices", cores)
    if spare_threads:
      # XLA has a thread for each core. A device that waits for the others in an
      # all-reduce holds one. The others may need another: LAPACK's Cholesky
      # factors of many matrices are spread over threads, and waited for.
      wanted = os.environ.get("NPROC", "")
      threads = max(int(wanted) if wanted.isdecimal() else 0, 2 * cores)
      os.environ["NPROC"] = str(threads)


def usable_cores() -> int:
  """Returns the number of cores that this process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  return max(1, min(cores, _container_quota(CPU_QUOTA, cores)))


def _container_quota(path: Path, default: int) -> int:
  """Reads the CPU quota of a Linux container, as a number of cores."""
  try:
    quota, period = path.read_text().split()
    return default if quota == "max" else int(quota) // int(period)
  except (OSError, ValueError):
    return default


def task_mesh(
  meta_batch: int,
  devices: Sequence[jax.Device] | None = None,
  *,
  name: str = "meta_batch",
) -> jax.sharding.Mesh:
  """Builds a mesh over which a meta-batch divides evenly.

  It has as many of the devices as possible, such that their number divides
  `meta_batch` and each process has the same number.

  Args:
    meta_batch: tasks per meta-step.
    devices: the available devices. None: the devices of all processes.
    name: what the caller calls `meta_batch`, for the message.

  Raises:
    ValueError: if `meta_batch` is not positive, or not a multiple of the number
      of processes.
  """
  check_counts(**{name: meta_batch})
  devices = jax.devices() if devices is None else list(devices)
  by_process: dict[int, list[jax.Device]] = {}
  for device in devices:
    by_process.setdefault(device.process_index, []).append(device)
  share, rest = divmod(meta_batch, len(by_process))
  if rest:
    raise ValueError(
      f"{name}={meta_batch}: must be a multiple of the {len(by_process)} "
      "processes."
    )
  fewest = min(map(len, by_process.values()))
  count = max(n for n in range(1, fewest + 1) if share % n == 0)
  chosen = [d for group in by_process.values() for d in group[:count]]
  return jax.sharding.Mesh(np.asarray(chosen), (TASKS,))


def under(
  mesh: jax.sharding.Mesh, fn: Callable[..., Any]
) -> Callable[..., Any]:
  """Lets a function use a mesh, even if the caller has set another mesh.

  JAX raises if a program uses another mesh than the one of `jax.set_mesh`.

  Args:
    mesh: the mesh of the function's programs.
    fn: a function that is not traced.
  """

  @functools.wraps(fn)
  def call(*args: Any, **options: Any) -> Any:
    set_by_caller = jax.sharding.get_abstract_mesh()
    if set_by_caller.empty or set_by_caller == mesh.abstract_mesh:
      return fn(*args, **options)
    with jax.set_mesh(mesh):
      return fn(*args, **options)

  return call


def mean_over_devices(
  learned: tuple[Params, Metrics], like: Params
) -> tuple[Params, Metrics]:
  """Averages gradients and metrics over the devices, inside `shard_map`.

  Args:
    learned: `(grads, metrics)` of a device.
    like: a tree with the dtypes of the result's gradients.

  Returns:
    The mean `(grads, metrics)`. They are summed in float32 at least. The
    metrics keep that dtype.
  """
  grads, metrics = jax.lax.pmean(jax.tree.map(wide, learned), TASKS)
  grads = jax.tree.map(lambda x, y: variables.narrow(x, y.dtype), grads, like)
  return grads, metrics


def with_split_state(
  device_step: Callable[..., Any],
  mesh: jax.sharding.Mesh,
  places: Any,
  num_given: int = 1,
) -> tuple[Callable[..., Any], Any]:
  """Lets each device keep a part of a trainer's state, such as a buffer.

  Args:
    device_step: `(state, *given) -> (state, metrics)`, of one device.
    mesh: the mesh.
    places: a tree like the state, with `P(TASKS)` for what is split over its
      first axis, and `P()` for what every device has.
    num_given: number of the other arguments, which every device has.

  Returns:
    The step of all devices, and the shardings of the state.
  """
  step = jax.shard_map(
    device_step,
    mesh=mesh,
    in_specs=(places, *[P()] * num_given),
    out_specs=(places, P()),
    check_vma=False,
  )
  where = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    places,
    is_leaf=lambda x: isinstance(x, P),
  )
  return step, where
