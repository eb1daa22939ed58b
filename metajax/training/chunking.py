"""How many tasks to treat at once."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from metajax.types import (
  Episode,
  MetaLearner,
  Params,
  PRNGKey,
  TaskFamily,
  as_partial,
)

# A core is fastest while a chunk's temporaries stay in its cache (conv4-64 and
# the MLPs of Omniglot: one task at a time); an accelerator while they fill the
# device but leave room for the rest.
CPU_BYTES = 2 * 2**20
ACCELERATOR_FRACTION = 0.25
# Products of many tasks with a matrix each are slow on CPUs whose cores are
# devices, where the matrices have more numbers than this. With 25,088 (an MLP
# of 32 units on Omniglot's images) two tasks at once took twice as long as one
# by one, with 784 x 64 four times, with 128 x 128 less (2 cores, JAX 0.10).
CPU_NUMBERS = 20_000


def choose_task_chunk(
  learner: MetaLearner,
  tasks: TaskFamily,
  tasks_per_device: int,
  *,
  at_once: int = 1,
  budget_bytes: int | None = None,
) -> int:
  """Returns how many of a device's tasks to treat at once, within a budget.

  The memory of a task is read from the compiled meta-gradient of one task. The
  chunk divides the tasks of a device, or nearly: see `split`. On a CPU, and if
  no budget is given, it is 1 where an array that a task adapts has more than
  `CPU_NUMBERS` numbers.

  Args:
    learner: the meta-learner.
    tasks: the task family to train on.
    tasks_per_device: meta-batch over number of devices.
    at_once: chunks that are treated at once, of different seeds.
    budget_bytes: bytes of temporaries allowed to a chunk; chosen by the device
      if None.
  """
  on_cpu = jax.local_devices()[0].platform == "cpu"
  choose = budget_bytes is None and on_cpu
  if choose and _most_numbers(learner, tasks) > CPU_NUMBERS:
    return 1
  budget = _device_budget() if budget_bytes is None else budget_bytes
  traced = trace_one_task(learner, tasks)
  if _largest_result(traced.jaxpr.jaxpr) * at_once > budget:
    return 1  # Without half a minute of compilation.
  analysis = traced.lower().compile().memory_analysis()
  if analysis is None:  # Some backends do not tell.
    return 1
  per_task = max(analysis.temp_size_in_bytes, 1) * at_once
  return split(tasks_per_device, min(budget // per_task, tasks_per_device))


def split(num_tasks: int, most: int) -> int:
  """Returns a chunk of at most `most` tasks, in which all have a place.

  It is the largest divisor that fits. Where that would leave half of the room
  empty, as it does for primes, it is the chunk of as few as will do, as even as
  they get: 97 tasks of which 48 fit make 33 + 33 + 31.
  """
  if most <= 1:
    return 1
  divisor = max(n for n in range(1, most + 1) if num_tasks % n == 0)
  num_chunks = -(-num_tasks // most)
  return divisor if 2 * divisor > most else -(-num_tasks // num_chunks)


def trace_one_task(
  learner: MetaLearner, tasks: TaskFamily
) -> jax.stages.Traced:
  """Traces the meta-gradient of one task; compiled, it tells its memory.

  Nothing is computed: neither a task nor meta-parameters.
  """
  meta_params, episodes, rng = _shapes(learner, tasks)
  episodes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), episodes
  )

  def meta_grad(learner, step, *arguments):  # Of the step that needs most.
    return learner.at_step(step).meta_grad(*arguments)

  step = jax.ShapeDtypeStruct((), jnp.int32)
  given = learner.carried(), step, meta_params, episodes, rng
  return jax.jit(meta_grad).trace(*given)


def _shapes(
  learner: MetaLearner, tasks: TaskFamily
) -> tuple[Params, Episode, PRNGKey]:
  """Returns the shapes of meta-parameters and of a task, and any key."""
  rng = jax.random.key(0)
  episode = jax.eval_shape(as_partial(tasks), rng)
  meta_params = jax.eval_shape(learner.init, rng, episode.support.inputs)
  return meta_params, episode, rng


def _most_numbers(learner: MetaLearner, tasks: TaskFamily) -> int:
  """Returns the size of the largest array that a task has of its own."""
  meta_params, episode, rng = _shapes(learner, tasks)
  adapt = jax.make_jaxpr(learner.adapt)(meta_params, episode.support, rng).jaxpr
  # What comes out as it went in is the same for all tasks.
  own = [x.aval.size for x in adapt.outvars if x not in adapt.invars]
  return max(own, default=0)


def _largest_result(jaxpr: Jaxpr) -> int:
  """Returns the bytes of the largest array that a product or a loop returns.

  It is part of the program's temporaries: XLA makes no other array for sure.
  """
  sizes = [0]
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ("dot_general", "conv_general_dilated", "scan"):
      results: list[Any] = [x.aval for x in eqn.outvars]
      sizes += [x.size * x.dtype.itemsize for x in results]
    sizes += map(_largest_result, jaxprs_in_params(eqn.params))
  return max(sizes)


def _device_budget() -> int:
  device = jax.local_devices()[0]
  stats = None if device.platform == "cpu" else device.memory_stats()
  if not stats or "bytes_limit" not in stats:
    return CPU_BYTES
  return int(ACCELERATOR_FRACTION * stats["bytes_limit"])
