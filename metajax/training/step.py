"""The meta-training step: sample tasks, average meta-gradients, update."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.training.chunking import choose_task_chunk
from metajax.training.mesh import TASKS, task_mesh
from metajax.types import (
  Array,
  Episode,
  MetaLearner,
  Metrics,
  Params,
  PRNGKey,
  TaskFamily,
  as_partial,
)

Train = Callable[["TrainState", int], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
  """Everything that changes in meta-training.

  Attributes:
    step: int32 scalar, the number of meta-steps taken.
    meta_params: the meta-parameters.
    opt_state: the state of the outer optimizer.
  """

  step: Array
  meta_params: Params
  opt_state: optax.OptState


class Trainer(NamedTuple):
  """Pure functions that start and continue meta-training.

  Attributes:
    init: `(rng) -> TrainState`, replicated over the mesh.
    compile: `(state) -> (train, executable)`, for states like the given one.
      `train(state, num_steps) -> (state, metrics)` takes `num_steps` meta-steps
      and returns the mean of their metrics; it donates the given state. The
      number of steps is an argument of the program, and the program is compiled
      ahead of time, so a run is traced once, whatever it does. `executable` is
      the program itself, which tells its memory and its FLOPs.
  """

  init: Callable[[PRNGKey], TrainState]
  compile: Callable[[TrainState], tuple[Train, jax.stages.Compiled]]


def meta_trainer(
  learner: MetaLearner,
  optimizer: optax.GradientTransformation,
  tasks: TaskFamily,
  *,
  meta_batch: int,
  rng: PRNGKey,
  task_chunk: int | None = None,
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
    rng: the key from which all tasks are drawn.
    task_chunk: tasks whose meta-gradient is computed at once, on one device;
      must divide `meta_batch / mesh.size`. None: `choose_task_chunk` says.
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
  if task_chunk is None:
    task_chunk = choose_task_chunk(learner, tasks, per_device)
  if task_chunk < 1 or per_device % task_chunk:
    raise ValueError(
      f"task_chunk={task_chunk}: must divide the {per_device} tasks of a "
      "device."
    )
  num_chunks = per_device // task_chunk
  tasks = as_partial(tasks)
  replicated = NamedSharding(mesh, P())

  def chunk_grad(meta_params, tasks, step, rng, chunk):
    """The meta-gradient and metrics of one chunk; `chunk` counts globally."""
    step_key = jax.random.fold_in(rng, step)
    index = chunk * task_chunk + jnp.arange(task_chunk)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)
    episodes: Episode = jax.vmap(tasks)(keys)
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
    return jax.tree.map(lambda x, like: x.astype(like.dtype), mean, narrow)

  # Gradients are local to a device until pmean; check_vma would turn the
  # gradient of replicated parameters into a sum over devices.
  sharded_grad = jax.shard_map(
    device_grad, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
  )

  def meta_step(state, tasks, rng):
    grads, metrics = sharded_grad(state.meta_params, tasks, state.step, rng)
    return next_state(optimizer, state, grads), metrics

  @functools.partial(jax.jit, out_shardings=replicated)
  def start(rng: PRNGKey, tasks: TaskFamily) -> TrainState:
    episode = tasks(rng)
    meta_params = learner.init(rng, episode.support.inputs)
    return TrainState(jnp.int32(0), meta_params, optimizer.init(meta_params))

  def init(rng: PRNGKey) -> TrainState:
    return start(jax.device_put(rng, replicated), tasks)

  tasks, rng = jax.device_put((tasks, rng), replicated)
  return Trainer(init, mean_over_steps(meta_step, tasks, rng))


def next_state(
  optimizer: optax.GradientTransformation, state: TrainState, grads: Params
) -> TrainState:
  """Returns the state after a step of the outer optimizer."""
  updates, opt_state = optimizer.update(
    grads, state.opt_state, state.meta_params
  )
  meta_params = optax.apply_updates(state.meta_params, updates)
  return TrainState(state.step + 1, meta_params, opt_state)


def mean_over_steps(
  step: Callable[..., tuple[TrainState, Metrics]], *arguments: Any
) -> Callable[[TrainState], tuple[Train, jax.stages.Compiled]]:
  """Builds a trainer's `compile` from one of its steps.

  Args:
    step: `(state, *arguments) -> (state, metrics)`, the metrics scalars.
    arguments: what the program is given beside the state: keys, data.
  """

  def train_steps(state, num_steps, *arguments):
    def body(_, carry):
      state, total = carry
      state, metrics = step(state, *arguments)
      return state, jax.tree.map(jnp.add, total, metrics)

    shapes = jax.eval_shape(step, state, *arguments)[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    state, total = jax.lax.fori_loop(0, num_steps, body, (state, zeros))
    return state, jax.tree.map(lambda x: x / num_steps, total)

  def compile(state):
    jitted = jax.jit(train_steps, donate_argnums=0)
    executable = jitted.lower(state, jnp.int32(0), *arguments).compile()

    def train(state, num_steps):
      return executable(state, jnp.int32(num_steps), *arguments)

    return train, executable

  return compile


def _widen(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
