"""Replay for any meta-learner: stores tasks and learns from them repeatedly."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import variables
from metajax.numerics import check_key
from metajax.replay.buffers import apart, for_each_shard, lay_out
from metajax.task_checks import check_learner, check_tasks
from metajax.training.mesh import (
  TASKS,
  mean_over_devices,
  with_split_state,
)
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  first_state,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import (
  MetaLearner,
  Metrics,
  Params,
  PRNGKey,
  TaskFamily,
  as_partial,
)


class EpisodeReplay(NamedTuple):
  """Configures the replay of tasks. Numbers are for all devices together.

  Attributes:
    new: number of new tasks in a step.
    batch: number of tasks to learn from in a step. A task is learned from
      `batch / new` times, on average.
    capacity: number of tasks to keep. The oldest is replaced first.
    shards: number of buffers over which the tasks are split. Each gives the
      same number of samples. A run with a given number of shards computes the
      same steps, up to rounding, on any number of devices that divides it.
      Checkpoints can be restored on these numbers of devices, too. None: one
      shard for each device.
  """

  new: int = 4
  batch: int = 16
  capacity: int = 1024
  shards: int | None = None


def episode_replay_trainer(
  learner: MetaLearner,
  optimizer: optax.GradientTransformation,
  tasks: TaskFamily,
  replay: EpisodeReplay,
  *,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a meta-trainer that draws few tasks and learns from each repeatedly.

  A step stores new episodes. It then learns from a uniform sample of the stored
  episodes, drawn with replacement::

    B <- B + new episodes
    theta <- theta + optimizer( mean over a sample of B of  meta_grad(theta) )

  Use it if tasks are expensive to draw. `training.meta_trainer` draws new tasks
  in every step.

  Args:
    learner: any meta-learner.
    optimizer: any optax optimizer.
    tasks: the distribution of tasks.
    replay: the configuration of the replay.
    rng: the key of all tasks and samples.
    mesh: a mesh with the axis "tasks", over which tasks and buffer are split.
      If None, it is `task_mesh` of the shards, or of `new` without shards.

  Returns:
    A `Trainer`, which reports the learner's metrics. Its `opt_state` is a pair
    of the optimizer's state and the buffer.

  Raises:
    ValueError: if the number of shards is not a multiple of the devices; if a
      number of tasks is not a multiple of the shards; or if the capacity is
      below `new` or `batch`.
  """
  check_learner(learner)
  check_tasks(tasks)
  check_key(rng)
  mesh, num_shards, held, shares = lay_out(
    mesh,
    replay.shards,
    new=replay.new,
    batch=replay.batch,
    capacity=replay.capacity,
  )
  if replay.capacity < max(replay.new, replay.batch):
    raise ValueError(
      f"capacity={replay.capacity}: must hold the {replay.new} new tasks of a "
      f"step, and the {replay.batch} that it learns from."
    )
  # Imported here, because command lines must work without the extra `rl`.
  import flashbax

  buffer = flashbax.make_item_buffer(
    max_length=shares["capacity"],
    min_length=1,
    sample_batch_size=shares["batch"],
    add_batches=True,
  )
  over_shards = functools.partial(for_each_shard, held)
  each_key = jax.vmap(jax.random.fold_in, (None, 0))
  # Arguments of the compiled programs below, so that none is a constant.
  given = as_partial(tasks), learner.carried()

  def device_step(
    state: TrainState, given: tuple[TaskFamily, MetaLearner], rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    tasks, learner = given
    optimizer_state, stored = state.opt_state
    device = jax.lax.axis_index(TASKS)
    draw_key, step_key = jax.random.split(jax.random.fold_in(rng, state.step))
    num_new = held * shares["new"]
    keys = each_key(draw_key, device * num_new + jnp.arange(num_new))
    new = apart(jax.vmap(tasks)(keys), held)
    stored = over_shards(buffer.add)(stored, new)
    learns = learner.at_step(state.step).meta_grad

    def learn(
      params: Params, stored: Any, rng: PRNGKey
    ) -> tuple[Params, Metrics]:
      sample_key, learn_key = jax.random.split(rng)
      episodes = buffer.sample(stored, sample_key).experience
      return learns(params, episodes, learn_key)

    shards = device * held + jnp.arange(held)
    step_keys = each_key(step_key, shards)

    def at(params: Params) -> tuple[Params, Metrics]:
      learned = over_shards(functools.partial(learn, params))(stored, step_keys)
      return mean_over_devices(variables.mean(learned), like=learned[0])

    grads, metrics = at(state.meta_params)
    state = next_state(
      optimizer,
      state._replace(opt_state=optimizer_state),
      grads,
      metrics.get("loss"),
      at=at,
    )
    return state._replace(opt_state=(state.opt_state, stored)), metrics

  everywhere: Any = P()
  places = TrainState(everywhere, everywhere, (everywhere, P(TASKS)))
  step, where = with_split_state(device_step, mesh, places, num_given=2)

  @functools.partial(jax.jit, out_shardings=where)
  def start(rng: PRNGKey, given: tuple[TaskFamily, MetaLearner]) -> TrainState:
    tasks, learner = given
    episode = tasks(rng)
    meta_params = learner.init(rng, episode.support.inputs)
    empty = buffer.init(episode)
    stored = jax.tree.map(lambda x: jnp.stack([x] * num_shards), empty)
    state = first_state(optimizer, meta_params)
    return state._replace(opt_state=(state.opt_state, stored))

  replicated = NamedSharding(mesh, P())
  given, rng = place((given, rng), replicated)
  return trainer_on(
    mesh,
    lambda key: start(place(key, replicated), given),
    mean_over_steps(step, given, rng),
  )
