"""The meta-training step: samples tasks, averages meta-gradients, updates."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.gradient_checks import check_meta_gradient
from metajax.numerics import check_counts, check_key, wide
from metajax.task_checks import check_learner, check_tasks
from metajax.training import seeds
from metajax.training.chunking import choose_task_chunk
from metajax.training.mesh import TASKS, mean_over_devices, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  first_state,
  gradient_norm,
  mean_over_steps,
  next_state,
  traced_once,
  trainer_on,
)
from metajax.training.streaming import (
  check_one_process,
  mean_over_stream,
  read,
  read_ahead,
)
from metajax.types import (
  Array,
  Episode,
  MetaLearner,
  PRNGKey,
  Stream,
  TaskFamily,
  as_partial,
)


def meta_trainer(
  learner: MetaLearner,
  optimizer: optax.GradientTransformation,
  tasks: TaskFamily,
  *,
  meta_batch: int,
  rng: PRNGKey,
  task_chunk: int | None = None,
  skip_non_finite: bool = False,
  mesh: Mesh | None = None,
  points: seeds.Points | None = None,
) -> Trainer:
  """Builds a meta-trainer whose whole loop is one compiled function.

  In a meta-step, each device of the mesh draws its share of `meta_batch` tasks.
  The learner's `meta_grad` computes `task_chunk` of them at a time. The results
  are averaged over chunks and devices::

    g = 1/B sum_{chunks c} |c| meta_grad(theta, episodes_c)
    theta <- theta + optimizer(g)

  The memory in use is therefore that of one chunk. The metrics are the
  learner's metrics and "gradient_norm", the norm of g.

  Task i of step s is drawn from `fold_in(fold_in(rng, s), i)`. The tasks do not
  depend on the chunks, on the devices, or on interruptions of the run. (The
  random numbers of a stochastic learner do depend on the chunks, because
  `meta_grad` takes one key for a whole chunk.)

  Args:
    learner: any meta-learner.
    optimizer: the outer optimizer.
    tasks: the task family to train on. The host reads the tasks of a `Stream`
      ahead. Its tasks are the same, but each step is a call of the program.
    meta_batch: B, tasks per meta-step.
    rng: the key from which all tasks are drawn. With keys `[S]`, one program
      trains S seeds, and each seed trains as it would alone. `init` then takes
      keys `[S]`, too. The state, except for its step, has a leading axis of
      seeds, and metrics are means over the seeds. All seeds stop if one is not
      finite.
    task_chunk: number of tasks whose meta-gradient is computed at once on one
      device; at most `meta_batch / mesh.size`. If it does not divide the tasks
      of a device, the last chunk is smaller. None: `choose_task_chunk` chooses.
    skip_non_finite: if True, a step whose gradient, loss or update is not
      finite is skipped and changes nothing. It counts only in the metric
      "skipped", the share of skipped steps. If False, training stops before
      such a step.
    mesh: a mesh with the axis "tasks". If None, it is `task_mesh(meta_batch)`.
    points: with keys `[S]`, hyper-parameters of the S trainings, and a function
      that makes the learner and the optimizer of each. `learner` and
      `optimizer` above then define the shapes only. The metrics are `[S]`, one
      for each training.

  Returns:
    A `Trainer`.

  Raises:
    ValueError: if the meta-batch is not a multiple of the number of devices, if
      `task_chunk` is not from 1 to the number of tasks of a device, or if
      several processes train on a `Stream`.
  """
  check_counts(meta_batch=meta_batch)
  check_learner(learner)
  check_key(rng)
  mesh = task_mesh(meta_batch) if mesh is None else mesh
  per_device, rest = divmod(meta_batch, mesh.size)
  if rest:
    raise ValueError(
      f"meta_batch={meta_batch}: must be a multiple of {mesh.size} devices."
    )
  check_tasks(tasks)
  num_seeds = seeds.count(rng)
  if task_chunk is None:
    task_chunk = choose_task_chunk(
      learner, tasks, per_device, at_once=num_seeds or 1
    )
  if not 1 <= task_chunk <= per_device:
    raise ValueError(
      f"task_chunk={task_chunk}: must be 1 to {per_device}, the tasks of a "
      "device."
    )
  check_counts(task_chunk=task_chunk)
  num_whole, left = divmod(per_device, task_chunk)
  num_chunks = num_whole + (left > 0)
  # A task is `task_of(*data, key)`. The data are what the host reads, if any.
  task_of: Any = tasks
  stream = tasks if isinstance(tasks, Stream) else None
  if stream is not None:
    check_one_process()
    task_of = stream.finish
  # Arguments of the compiled programs below, so that none is a constant.
  given = as_partial(task_of), learner.carried()
  replicated = NamedSharding(mesh, P())
  numbers = () if points is None else points.numbers

  def made(given, numbers):
    """The tasks, the learner and the optimizer of one training."""
    if points is None:
      return *given, optimizer
    return given[0], *points.make(numbers)

  @functools.partial(traced_once, static_argnames="size")
  def chunk_grad(meta_params, given, step, draw, chunk, size=task_chunk):
    """Returns the meta-gradient and metrics of a device's chunk of tasks."""
    rng, numbers, data = draw
    tasks, learner, _ = made(given, numbers)
    step_key = jax.random.fold_in(rng, step)
    device = jax.lax.axis_index(TASKS)
    first = chunk * task_chunk
    keys = task_keys(rng, step, device * per_device + first + jnp.arange(size))
    part = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), data
    )
    episodes: Episode = jax.vmap(tasks)(*part, keys)
    key = jax.random.fold_in(step_key, meta_batch + device * num_chunks + chunk)
    found = learner.at_step(step).meta_grad(meta_params, episodes, key)
    check_meta_gradient(found, meta_params)
    return found

  def device_grad(meta_params, given, step, draw):
    def add(total, chunk):
      new = chunk_grad(meta_params, given, step, draw, chunk)
      return jax.tree.map(jnp.add, total, new), None

    if num_whole == 1:
      narrow = chunk_grad(meta_params, given, step, draw, jnp.int32(0))
      # A sum of many chunks in bfloat16 would lose digits.
      total = jax.tree.map(wide, narrow)
    else:
      # The sum starts at zero, so that XLA compiles the gradient only once.
      narrow = jax.eval_shape(
        chunk_grad, meta_params, given, step, draw, jnp.int32(0)
      )
      zeros = jax.tree.map(lambda x: wide(jnp.zeros(x.shape, x.dtype)), narrow)
      chunks = jnp.arange(num_whole, dtype=jnp.int32)
      total, _ = jax.lax.scan(add, zeros, chunks)
    if left:
      chunk = jnp.int32(num_whole)
      last = chunk_grad(meta_params, given, step, draw, chunk, size=left)
      total = jax.tree.map(
        lambda t, x: t + left / task_chunk * wide(x), total, last
      )
    mean = jax.tree.map(lambda x: x / (per_device / task_chunk), total)
    return mean_over_devices(mean, like=narrow[0])

  # Gradients are local to a device until pmean. With check_vma, the gradient of
  # replicated parameters would be a sum over devices.
  def over_devices(fn: Callable, data: P) -> Callable:
    specs = P(), P(), P(), (P(), P(), data)
    return jax.shard_map(
      fn, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False
    )

  of_data = P(TASKS)
  sharded_grad = sharded_one = over_devices(device_grad, of_data)
  if num_seeds is not None:
    of_data = P(None, TASKS)
    sharded_grad = over_devices(
      jax.vmap(device_grad, in_axes=(0, None, None, 0)), of_data
    )

  def meta_step(state, data, given, draw):
    draw = *draw, data
    grads, metrics = sharded_grad(state.meta_params, given, state.step, draw)

    def update(state, grads, metrics, draw):
      metrics = {**metrics, "gradient_norm": gradient_norm(grads)}
      new = next_state(
        made(given, draw[1])[2],
        state,
        grads,
        metrics.get("loss"),
        at=lambda params: sharded_one(params, given, state.step, draw),
      )
      if skip_non_finite:
        finite = new.step > state.step
        new = new._replace(step=state.step + 1)
        metrics = {k: jnp.where(finite, m, 0.0) for k, m in metrics.items()}
        metrics["skipped"] = jnp.where(finite, 0.0, 1.0)
      return new, metrics

    if num_seeds is not None:
      update = seeds.together(update, means=points is None)
    return update(state, grads, metrics, draw)

  def start_one(draw, given):
    rng, numbers, data = draw
    tasks, learner, optimizer = made(given, numbers)
    episode = tasks(*data, rng)
    meta_params = learner.init(rng, episode.support.inputs)
    return first_state(optimizer, meta_params)

  if num_seeds is not None:
    start_one = seeds.from_keys(start_one)

  start = jax.jit(start_one, out_shardings=replicated)

  def init(rng: PRNGKey) -> TrainState:
    data = () if stream is None else read(stream, rng)
    return start(place((rng, numbers, data), replicated), given)

  given, draw = place((given, (rng, numbers)), replicated)
  if stream is None:
    compile = mean_over_steps(meta_step, (), given, draw)
  else:
    shape = (meta_batch,) if num_seeds is None else (num_seeds, meta_batch)
    batches = functools.partial(
      read_ahead, stream, rng, shape, NamedSharding(mesh, of_data)
    )
    compile = mean_over_stream(meta_step, batches, given, draw)
  return trainer_on(mesh, init, compile)


def task_keys(rng: PRNGKey, step: Array | int, index: Array) -> PRNGKey:
  """Returns the keys from which the tasks `index` of a meta-step are drawn."""
  step_key = jax.random.fold_in(rng, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)
