"""How many tasks to treat at once."""

import jax
import jax.numpy as jnp

from metajax.types import MetaLearner, TaskFamily

# A core is fastest while a chunk's temporaries stay in its cache (conv4-64 and
# the MLPs of Omniglot: one task at a time); an accelerator while they fill the
# device but leave room for the rest.
CPU_BYTES = 2 * 2**20
ACCELERATOR_FRACTION = 0.25


def choose_task_chunk(
  learner: MetaLearner,
  tasks: TaskFamily,
  tasks_per_device: int,
  *,
  at_once: int = 1,
  budget_bytes: int | None = None,
) -> int:
  """Returns the largest divisor of `tasks_per_device` that fits the budget.

  The memory of a task is read from the compiled meta-gradient of one task.

  Args:
    learner: the meta-learner.
    tasks: the task family to train on.
    tasks_per_device: meta-batch over number of devices.
    at_once: chunks that are treated at once, of different seeds.
    budget_bytes: bytes of temporaries allowed to a chunk; chosen by the device
      if None.
  """
  compiled = compile_one_task(learner, tasks)
  analysis = compiled.memory_analysis()
  if analysis is None:  # Some backends do not tell.
    return 1
  per_task = max(analysis.temp_size_in_bytes, 1) * at_once
  budget = _device_budget() if budget_bytes is None else budget_bytes
  fits = [
    n
    for n in range(1, tasks_per_device + 1)
    if tasks_per_device % n == 0 and n * per_task <= budget
  ]
  return max(fits, default=1)


def compile_one_task(
  learner: MetaLearner, tasks: TaskFamily
) -> jax.stages.Compiled:
  """Compiles the meta-gradient of one task, which tells its memory and FLOPs.

  Nothing is computed: neither a task nor meta-parameters.
  """
  rng = jax.random.key(0)
  episodes = jax.eval_shape(jax.vmap(tasks), jax.random.split(rng, 1))
  inputs = jax.ShapeDtypeStruct(
    episodes.support.inputs.shape[1:], episodes.support.inputs.dtype
  )
  meta_params = jax.eval_shape(learner.init, rng, inputs)

  def meta_grad(step, *arguments):  # Of the step that needs most.
    return learner.at_step(step).meta_grad(*arguments)

  step = jax.ShapeDtypeStruct((), jnp.int32)
  return jax.jit(meta_grad).lower(step, meta_params, episodes, rng).compile()


def _device_budget() -> int:
  device = jax.local_devices()[0]
  stats = None if device.platform == "cpu" else device.memory_stats()
  if not stats or "bytes_limit" not in stats:
    return CPU_BYTES
  return int(ACCELERATOR_FRACTION * stats["bytes_limit"])
