"""Chooses the number of tasks to compute at once."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from metajax.gradient_checks import check_meta_gradient
from metajax.types import (
  Episode,
  MetaLearner,
  Params,
  PRNGKey,
  TaskFamily,
  as_partial,
)

# A core is fastest if the temporaries of a chunk stay in its cache. For
# conv4-64 and the MLPs of Omniglot, such a chunk is one task. An accelerator is
# fastest if the temporaries fill a large part of its memory.
CPU_BYTES = 2 * 2**20
ACCELERATOR_FRACTION = 0.25
# Batched matrix products with one matrix a task are slow if each CPU core is a
# device and a matrix has more numbers than this. For 25,088 numbers (an MLP of
# 32 units on Omniglot's images), two tasks at once took twice as long as one
# after the other. For 784 x 64 they took four times as long, and for 128 x 128
# they took less time (2 cores, JAX 0.10).
CPU_NUMBERS = 20_000
# A product of a large matrix with few rows takes the time of reading the
# matrix. More tasks at once are more rows, if they share the matrix. The steps
# of a recurrent network are such products. For 16 tasks of 51 examples on one
# core, all at once took 0.15 times as long as one after the other for a network
# with an external memory, and 0.4 times for an LSTM and a GRU. If most
# operations are such products, temporaries may take more than the cache.
FEW_ROWS = 8
LARGE = 10_000  # Numbers of a matrix that is larger than a first-level cache.
CPU_BYTES_FEW_ROWS = 256 * 2**20


def choose_task_chunk(
  learner: MetaLearner,
  tasks: TaskFamily,
  tasks_per_device: int,
  *,
  at_once: int = 1,
  budget_bytes: int | None = None,
) -> int:
  """Chooses how many tasks a device computes at once, within a memory budget.

  The memory of a task is that of the compiled meta-gradient of one task. The
  chunk divides the tasks of a device evenly, or almost evenly (see `split`). On
  a CPU without a given budget, the chunk is 1 if one of the arrays that adapt
  to a task has more than `CPU_NUMBERS` numbers. It has more memory there if
  most operations are products of few rows with a large matrix that all tasks
  share.

  Args:
    learner: the meta-learner.
    tasks: the task family to train on.
    tasks_per_device: the meta-batch divided by the number of devices.
    at_once: number of chunks, of different seeds, that are computed at once.
    budget_bytes: bytes that the temporaries of a chunk may take. If None, the
      budget depends on the device.

  Returns:
    The number of tasks of a chunk, at least 1.
  """
  on_cpu = jax.local_devices()[0].platform == "cpu"
  choose = budget_bytes is None and on_cpu
  if choose and _most_numbers(learner, tasks) > CPU_NUMBERS:
    return 1
  budget = _device_budget() if budget_bytes is None else budget_bytes
  traced = trace_one_task(learner, tasks)
  if choose:
    thin, products = _operations(traced.jaxpr.jaxpr)
    budget = CPU_BYTES_FEW_ROWS if 2 * thin > products else budget
  if _largest_result(traced.jaxpr.jaxpr) * at_once > budget:
    return 1  # Avoids half a minute of compilation.
  analysis = traced.lower().compile().memory_analysis()
  if analysis is None:  # Some backends do not report memory.
    return 1
  per_task = max(analysis.temp_size_in_bytes, 1) * at_once
  return split(tasks_per_device, min(budget // per_task, tasks_per_device))


def split(num_tasks: int, most: int) -> int:
  """Splits tasks into chunks of at most `most`; returns the size of a chunk.

  The size is the largest divisor of `num_tasks` that is at most `most`. If this
  is half of `most` or less, as for primes, the tasks are split into as few
  chunks as possible, of almost equal sizes. For example, 97 tasks with
  `most = 48` give chunks of 33, 33 and 31.
  """
  if most <= 1:
    return 1
  divisor = max(n for n in range(1, most + 1) if num_tasks % n == 0)
  num_chunks = -(-num_tasks // most)
  return divisor if 2 * divisor > most else -(-num_tasks // num_chunks)


def trace_one_task(
  learner: MetaLearner, tasks: TaskFamily
) -> jax.stages.Traced:
  """Traces the meta-gradient of one task, without computing anything.

  The compiled trace reports the memory that it needs.
  """
  meta_params, episodes, rng = _shapes(learner, tasks)
  episodes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), episodes
  )

  # The step is traced, so the program has the branches of all steps.
  def meta_grad(learner, step, *arguments):
    found = learner.at_step(step).meta_grad(*arguments)
    check_meta_gradient(found, arguments[0])
    return found

  step = jax.ShapeDtypeStruct((), jnp.int32)
  given = learner.carried(), step, meta_params, episodes, rng
  return jax.jit(meta_grad).trace(*given)


def _shapes(
  learner: MetaLearner, tasks: TaskFamily
) -> tuple[Params, Episode, PRNGKey]:
  """Returns the shapes of meta-parameters and of a task, and an example key."""
  rng = jax.random.key(0)
  episode = jax.eval_shape(as_partial(tasks), rng)
  meta_params = jax.eval_shape(learner.init, rng, episode.support.inputs)
  return meta_params, episode, rng


def _most_numbers(learner: MetaLearner, tasks: TaskFamily) -> int:
  """Returns the size of the largest array of the per-task parameters."""
  meta_params, episode, rng = _shapes(learner, tasks)
  adapt = jax.make_jaxpr(learner.adapt)(meta_params, episode.support, rng).jaxpr
  # An output that is an input, too, is the same for all tasks.
  own = [x.aval.size for x in adapt.outvars if x not in adapt.invars]
  return max(own, default=0)


def _largest_result(jaxpr: Jaxpr) -> int:
  """Returns the bytes of the largest result of a product or a loop.

  The program's temporaries are at least as large. Only these results are
  counted, because XLA may fuse other operations and never store their results.
  """
  sizes = [0]
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ("dot_general", "conv_general_dilated", "scan"):
      results: list[Any] = [x.aval for x in eqn.outvars]
      sizes += [x.size * x.dtype.itemsize for x in results]
    sizes += map(_largest_result, jaxprs_in_params(eqn.params))
  return max(sizes)


def _operations(jaxpr: Jaxpr) -> tuple[int, int]:
  """Returns the multiplications by large shared matrices of few rows, and all.

  A product that has a batch axis has a matrix for each task.
  """
  thin = products = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      summed, batch = eqn.params["dimension_numbers"]
      shapes: list[Any] = [x.aval for x in eqn.invars]
      rows, columns = (
        math.prod(
          size for axis, size in enumerate(x.shape) if axis not in (*own, *each)
        )
        for x, own, each in zip(shapes, summed, batch, strict=True)
      )
      inner = math.prod(shapes[0].shape[axis] for axis in summed[0])
      count = math.prod(shapes[0].shape) * columns
      products += count
      few, *large = sorted((rows, columns, inner))
      if not batch[0] and few < FEW_ROWS and math.prod(large) > LARGE:
        thin += count
    length = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for inner_jaxpr in jaxprs_in_params(eqn.params):
      part = _operations(inner_jaxpr)
      thin, products = thin + length * part[0], products + length * part[1]
  return thin, products


def _device_budget() -> int:
  device = jax.local_devices()[0]
  stats = None if device.platform == "cpu" else device.memory_stats()
  if not stats or "bytes_limit" not in stats:
    return CPU_BYTES
  return int(ACCELERATOR_FRACTION * stats["bytes_limit"])
