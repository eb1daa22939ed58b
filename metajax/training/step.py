"""The meta-training step: sample tasks, average meta-gradients, update."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import variables
from metajax.numerics import wide
from metajax.training import seeds
from metajax.training.chunking import choose_task_chunk
from metajax.training.mesh import TASKS, mean_over_devices, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  first_state,
  mean_over_steps,
  next_state,
  traced_once,
  trainer_on,
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
  points: seeds.Points | None = None,
) -> Trainer:
  """Builds a trainer whose whole loop runs inside one compiled function.

  A meta-step draws `meta_batch` tasks on the devices, splits them over the
  mesh, lets the learner's `meta_grad` treat `task_chunk` of them at a time and
  averages::

    g = 1/B sum_{chunks c} |c| meta_grad(theta, episodes_c)
    theta <- theta + optimizer(g)

  so the memory in use is that of one chunk. The metrics are the learner's, and
  "gradient_norm", that of g. Task i of step s is drawn from
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
    task_chunk: tasks whose meta-gradient is computed at once, on one device, at
      most `meta_batch / mesh.size`. The last chunk of a device is smaller where
      it does not divide them. None: `choose_task_chunk` says.
    skip_non_finite: a step whose gradient, loss or update is not finite changes
      nothing and counts in no metric but "skipped", the share of such steps.
      Otherwise training stops before it.
    mesh: a mesh with the axis "tasks". None: `task_mesh(meta_batch)`.
    points: with keys `[S]`, numbers in which the trainings differ, and what
      makes a learner and an optimizer of one's; those given above are only of
      the same shapes. The metrics then are `[S]`, one for each training.

  Returns:
    A `Trainer`.

  Raises:
    ValueError: if the mesh does not divide the meta-batch, or a chunk is more
      than the tasks of a device.
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
  if not 1 <= task_chunk <= per_device:
    raise ValueError(
      f"task_chunk={task_chunk}: must be 1 to {per_device}, the tasks of a "
      "device."
    )
  num_whole, left = divmod(per_device, task_chunk)
  num_chunks = num_whole + (left > 0)
  # What the programs below are given, for nothing in it to be a constant.
  given = as_partial(tasks), learner.carried()
  replicated = NamedSharding(mesh, P())
  numbers = () if points is None else points.numbers

  def made(given, numbers):
    """The tasks, the learner and the optimizer of one training."""
    if points is None:
      return *given, optimizer
    return given[0], *points.make(numbers)

  @functools.partial(traced_once, static_argnames="size")
  def chunk_grad(meta_params, given, step, draw, chunk, size=task_chunk):
    """The meta-gradient and metrics of a device's chunk, of `size` tasks."""
    rng, numbers = draw
    tasks, learner, _ = made(given, numbers)
    step_key = jax.random.fold_in(rng, step)
    device = jax.lax.axis_index(TASKS)
    index = device * per_device + chunk * task_chunk + jnp.arange(size)
    episodes: Episode = jax.vmap(tasks)(task_keys(rng, step, index))
    key = jax.random.fold_in(step_key, meta_batch + device * num_chunks + chunk)
    return learner.at_step(step).meta_grad(meta_params, episodes, key)

  def device_grad(meta_params, given, step, draw):
    def add(total, chunk):
      new = chunk_grad(meta_params, given, step, draw, chunk)
      return jax.tree.map(jnp.add, total, new), None

    if num_whole == 1:
      narrow = chunk_grad(meta_params, given, step, draw, jnp.int32(0))
      # Sums of many chunks in bfloat16 would lose the small ones.
      total = jax.tree.map(wide, narrow)
    else:
      # From zero, for XLA to compile the gradient once and not twice.
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

  # Gradients are local to a device until pmean; check_vma would turn the
  # gradient of replicated parameters into a sum over devices.
  over_devices = functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
  )
  sharded_grad = sharded_one = over_devices(device_grad)
  if num_seeds is not None:
    sharded_grad = over_devices(
      jax.vmap(device_grad, in_axes=(0, None, None, 0))
    )

  def meta_step(state, given, draw):
    grads, metrics = sharded_grad(state.meta_params, given, state.step, draw)

    def update(state, grads, metrics, draw):
      norm = optax.tree.norm(variables.weights(grads))
      metrics = {**metrics, "gradient_norm": wide(norm)}
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
    rng, numbers = draw
    tasks, learner, optimizer = made(given, numbers)
    episode = tasks(rng)
    meta_params = learner.init(rng, episode.support.inputs)
    return first_state(optimizer, meta_params)

  if num_seeds is not None:
    start_one = seeds.from_keys(start_one)

  start = jax.jit(start_one, out_shardings=replicated)

  def init(rng: PRNGKey) -> TrainState:
    return start(place((rng, numbers), replicated), given)

  given, draw = place((given, (rng, numbers)), replicated)
  return trainer_on(mesh, init, mean_over_steps(meta_step, given, draw))


def task_keys(rng: PRNGKey, step: Array | int, index: Array) -> PRNGKey:
  """Returns the keys from which the tasks `index` of a meta-step are drawn."""
  step_key = jax.random.fold_in(rng, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)
