"""Replay for any meta-learner: tasks are kept and learned from again."""

import functools
from typing import Any, NamedTuple

import flashbax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  mean_over_steps,
  next_state,
)
from metajax.types import (
  MetaLearner,
  Metrics,
  PRNGKey,
  TaskFamily,
  as_partial,
)


class EpisodeReplay(NamedTuple):
  """How tasks are kept.

  Attributes:
    new: tasks drawn in a step, on all devices together.
    batch: tasks learned from in a step, likewise; a task is learned from
      `batch / new` times, on average.
    capacity: tasks that are kept, likewise; the oldest go first.
  """

  new: int = 4
  batch: int = 16
  capacity: int = 1024


def episode_replay_trainer(
  learner: MetaLearner,
  optimizer: optax.GradientTransformation,
  tasks: TaskFamily,
  replay: EpisodeReplay,
  *,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a meta-trainer that draws few tasks and learns often from each.

  A step stores new episodes and learns from a uniform sample, with replacement,
  of those that are kept::

    B <- B + new episodes
    theta <- theta + optimizer( mean over a sample of B of  meta_grad(theta) )

  For tasks that are dear: `training.meta_trainer` draws a new task each time.

  Args:
    learner: any meta-learner.
    optimizer: any optax optimizer.
    tasks: what is drawn from.
    replay: how tasks are kept.
    rng: the key of all tasks and samples.
    mesh: a mesh with the axis "tasks", over which tasks and buffer are split;
      None: `task_mesh(new)`.

  Returns:
    A `Trainer`, which reports the learner's metrics. Its `opt_state` is a pair
    of the optimizer's state and the buffer.

  Raises:
    ValueError: if devices do not divide the numbers, or the buffer holds fewer
      tasks than are drawn or learned from in a step.
  """
  mesh = task_mesh(replay.new) if mesh is None else mesh
  shares = {}
  for name, value in replay._asdict().items():
    shares[name], rest = divmod(value, mesh.size)
    if rest or value < 1:
      raise ValueError(
        f"{name}={value}: must be a positive multiple of {mesh.size} devices."
      )
  if replay.capacity < max(replay.new, replay.batch):
    raise ValueError(
      f"capacity={replay.capacity}: must hold the {replay.new} new tasks of a "
      f"step, and the {replay.batch} that it learns from."
    )
  buffer = flashbax.make_item_buffer(
    max_length=shares["capacity"],
    min_length=1,
    sample_batch_size=shares["batch"],
    add_batches=True,
  )
  tasks = as_partial(tasks)

  def device_step(
    state: TrainState, tasks: TaskFamily, rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    optimizer_state, stored = state.opt_state
    stored = jax.tree.map(lambda x: x[0], stored)
    device = jax.lax.axis_index(TASKS)
    draw_key, step_key = jax.random.split(jax.random.fold_in(rng, state.step))
    place = device * shares["new"] + jnp.arange(shares["new"])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(draw_key, place)
    stored = buffer.add(stored, jax.vmap(tasks)(keys))
    sample_key, learn_key = jax.random.split(
      jax.random.fold_in(step_key, device)
    )
    episodes = buffer.sample(stored, sample_key).experience
    learns = learner.at_step(state.step).meta_grad
    grads, metrics = jax.lax.pmean(
      learns(state.meta_params, episodes, learn_key), TASKS
    )
    state = next_state(
      optimizer, state._replace(opt_state=optimizer_state), grads
    )
    stored = jax.tree.map(lambda x: x[None], stored)
    return state._replace(opt_state=(state.opt_state, stored)), metrics

  everywhere: Any = P()
  places = TrainState(everywhere, everywhere, (everywhere, P(TASKS)))
  step = jax.shard_map(
    device_step,
    mesh=mesh,
    in_specs=(places, P(), P()),
    out_specs=(places, P()),
    check_vma=False,
  )
  where = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    places,
    is_leaf=lambda x: isinstance(x, P),
  )

  @functools.partial(jax.jit, out_shardings=where)
  def start(rng: PRNGKey, tasks: TaskFamily) -> TrainState:
    episode = tasks(rng)
    meta_params = learner.init(rng, episode.support.inputs)
    empty = buffer.init(episode)
    stored = jax.tree.map(lambda x: jnp.stack([x] * mesh.size), empty)
    return TrainState(
      jnp.int32(0), meta_params, (optimizer.init(meta_params), stored)
    )

  replicated = NamedSharding(mesh, P())
  tasks, rng = place((tasks, rng), replicated)
  return Trainer(
    lambda key: start(place(key, replicated), tasks),
    mean_over_steps(step, tasks, rng),
  )
