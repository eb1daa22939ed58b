"""The meta-training step: sample tasks, average meta-gradients, update."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import variables
from metajax.training import seeds
from metajax.training.chunking import choose_task_chunk
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  all_finite,
  first_state,
  mean_over_steps,
  next_state,
  traced_once,
)
from metajax.types import (
  Array,
  Episode,
  MetaLearner,
  PRNGKey,
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
) -> Trainer:
  """Builds a trainer whose whole loop runs inside one compiled function.

  A meta-step draws `meta_batch` tasks on the devices, splits them over the
  mesh, lets the learner's `meta_grad` treat `task_chunk` of them at a time and
  averages::

    g = 1/B sum_{chunks c} |c| meta_grad(theta, episodes_c)
    theta <- theta + optimizer(g)

  so the memory in use is that of one chunk. Task i of step s is drawn from
  `fold_in(fold_in(rng, s), i)`: the tasks depend neither on the chunks nor on
  the devices nor on where a run was interrupted. (What a stochastic learner
  draws does depend on the chunk: `meta_grad` takes one key for all of it.)

  Args:
    learner: any meta-learner.
    optimizer: the outer optimizer.
    tasks: the task family to train on.
    meta_batch: B, tasks per meta-step.
    rng: the key from which all tasks are drawn. Or keys `[S]`, to train S seeds
      in one program, each as it would be alone; `init` then takes keys `[S]`
      too, the state has a leading axis of seeds (but for its step), metrics are
      means over the seeds, and all of them stop where one is not finite.
    task_chunk: tasks whose meta-gradient is computed at once, on one device;
      must divide `meta_batch / mesh.size`. None: `choose_task_chunk` says.
    skip_non_finite: a step whose gradient or loss is not finite changes nothing
      and counts in no metric but "skipped", the share of such steps. Otherwise
      training stops before it.
    mesh: a mesh with the axis "tasks". None: `task_mesh(meta_batch)`.

  Returns:
    A `Trainer`.

  Raises:
    ValueError: if the mesh or the chunk does not divide the meta-batch.
  """
  mesh = task_mesh(meta_batch) if mesh is None else mesh
  per_device, rest = divmod(meta_batch, mesh.size)
  if rest:
    raise ValueError(
      f"meta_batch={meta_batch}: must be a multiple of {mesh.size} devices."
    )
  num_seeds = seeds.count(rng)
  if task_chunk is None:
    task_chunk = choose_task_chunk(
      learner, tasks, per_device, at_once=num_seeds or 1
    )
  if task_chunk < 1 or per_device % task_chunk:
    raise ValueError(
      f"task_chunk={task_chunk}: must divide the {per_device} tasks of a "
      "device."
    )
  num_chunks = per_device // task_chunk
  tasks = as_partial(tasks)
  replicated = NamedSharding(mesh, P())

  @traced_once
  def chunk_grad(meta_params, tasks, step, rng, chunk):
    """The meta-gradient and metrics of one chunk; `chunk` counts globally."""
    step_key = jax.random.fold_in(rng, step)
    index = chunk * task_chunk + jnp.arange(task_chunk)
    episodes: Episode = jax.vmap(tasks)(task_keys(rng, step, index))
    return learner.at_step(step).meta_grad(
      meta_params, episodes, jax.random.fold_in(step_key, meta_batch + chunk)
    )

  def device_grad(meta_params, tasks, step, rng):
    first = jax.lax.axis_index(TASKS) * num_chunks
    narrow = chunk_grad(meta_params, tasks, step, rng, first)
    # Sums of many chunks in bfloat16 would lose the small ones.
    total = jax.tree.map(_widen, narrow)

    def add(total, chunk):
      new = chunk_grad(meta_params, tasks, step, rng, chunk)
      return jax.tree.map(jnp.add, total, new), None

    if num_chunks > 1:
      chunks = first + jnp.arange(1, num_chunks)
      total, _ = jax.lax.scan(add, total, chunks)
    mean = jax.lax.pmean(jax.tree.map(lambda x: x / num_chunks, total), TASKS)
    return jax.tree.map(
      lambda x, like: variables.narrow(x, like.dtype), mean, narrow
    )

  def update(state, grads, metrics):
    loss = metrics.get("loss", 0.0)
    state = next_state(optimizer, state, grads, loss, skip=skip_non_finite)
    if skip_non_finite:
      finite = all_finite((grads, loss))
      metrics = {k: jnp.where(finite, m, 0.0) for k, m in metrics.items()}
      metrics["skipped"] = jnp.where(finite, 0.0, 1.0)
    return state, metrics

  def start_one(rng, tasks):
    episode = tasks(rng)
    meta_params = learner.init(rng, episode.support.inputs)
    return first_state(optimizer, meta_params)

  if num_seeds is not None:
    device_grad = jax.vmap(device_grad, in_axes=(0, None, None, 0))
    update = seeds.together(update)
    start_one = seeds.from_keys(start_one)

  # Gradients are local to a device until pmean; check_vma would turn the
  # gradient of replicated parameters into a sum over devices.
  sharded_grad = jax.shard_map(
    device_grad, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
  )

  def meta_step(state, tasks, rng):
    grads, metrics = sharded_grad(state.meta_params, tasks, state.step, rng)
    return update(state, grads, metrics)

  start = jax.jit(start_one, out_shardings=replicated)

  def init(rng: PRNGKey) -> TrainState:
    return start(place(rng, replicated), tasks)

  tasks, rng = place((tasks, rng), replicated)
  return Trainer(init, mean_over_steps(meta_step, tasks, rng))


def task_keys(rng: PRNGKey, step: Array | int, index: Array) -> PRNGKey:
  """Returns the keys from which the tasks `index` of a meta-step are drawn."""
  step_key = jax.random.fold_in(rng, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)


def _widen(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
