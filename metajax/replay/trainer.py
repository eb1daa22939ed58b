"""Trains by recurrent replay: acts and learns in one compiled step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import optimizers
from metajax.models.recurrent import Recurrent
from metajax.numerics import check_counts, check_key, check_kind, check_number
from metajax.players.recurrent import check_head, first_params
from metajax.replay.buffers import (
  Replay,
  add,
  apart,
  check_replay,
  for_each_shard,
  lay_out,
  make_buffer,
  set_priorities,
  together,
  without_empty,
)
from metajax.replay.learning import (
  Objective,
  acting_priorities,
  check_objective,
  replay_loss,
)
from metajax.replay.players import (
  checked_values,
  epsilon_ladder,
  q_player,
)
from metajax.replay.sequences import Sequence, cut, sequence_starts
from metajax.replay.values import importance_weights
from metajax.tasks.trials import Trials, check_trials, play
from metajax.training.mesh import (
  TASKS,
  mean_over_devices,
  with_split_state,
)
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import Array, Metrics, Params, PRNGKey


class ReplayState(NamedTuple):
  """The state of the trainer, without the parameters.

  Attributes:
    optimizer: the state of the optimizer.
    target_params: the parameters of the target network.
    updates: int32, the number of updates so far.
    buffer: the states of flashbax's buffers, `[shards, ...]`.
  """

  optimizer: optax.OptState
  target_params: Params
  updates: Array
  buffer: Any


def updates_per_step(replay: Replay, num_steps: int) -> int:
  """Returns the number of updates after each trial.

  Raises:
    ValueError: if the sequences do not fit a trial, or if the ratio or a number
      is not positive.
  """
  check_number("ratio", replay.ratio, above=0)
  check_counts(actors=replay.actors, batch=replay.batch)
  starts = sequence_starts(num_steps, replay.length, replay.period)
  return max(
    1, round(replay.ratio * replay.actors * len(starts) / replay.batch)
  )


def replay_trainer(
  network: Recurrent,
  tasks: Trials,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  replay: Replay,
  *,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer of recurrent experience replay.

  In a step, every actor plays one new task from beginning to end. The trainer
  stores its sequences, and then updates the network with sampled sequences
  (Kapturowski et al. 2019). The recurrent state learns within a task, as in
  Duan et al. 2016.

  Actors and buffers are split over the devices, and gradients are averaged over
  the devices. The first steps only fill the buffers, until they hold a batch.
  The first priority of a sequence comes from the values of its actor
  (`acting_priorities`). Each update on the sequence replaces its priority.

  Args:
    network: a network with a "dueling" or "linear" head, which has one output
      an action.
    tasks: the tasks to play.
    optimizer: any optax optimizer.
    objective: the configuration of the loss.
    replay: the configuration of the replay.
    rng: the key of all tasks, actions and samples.
    mesh: a mesh with the axis "tasks". If None, it is `task_mesh` of the
      shards, or of the actors without shards.

  Returns:
    A `Trainer`. Its metrics are "loss", "q" (the mean value of the taken
    actions), "reward" (the mean total reward of a trial over all actors) and
    "greedy_reward" (the total reward of the actor that explores least).

  Raises:
    ValueError: if a number is out of its range; or if the objective, the
      network's head and the tasks do not fit one another.
  """
  check_key(rng)
  check_trials(tasks)
  check_kind("objective", objective, Objective)
  check_kind("replay", replay, Replay)
  for name in ("num_actions", "num_steps"):
    given, actual = getattr(objective, name), getattr(tasks, name)
    if given != actual:
      raise ValueError(
        f"{name}={given} of the objective: must be {actual}, as that of the "
        "tasks."
      )
  starts = sequence_starts(tasks.num_steps, replay.length, replay.period)
  check_objective(objective, replay.length)
  check_replay(replay)
  num_actions = tasks.num_actions
  check_head(network, tasks, lambda head: checked_values(head, num_actions))
  mesh, num_shards, held, shares = lay_out(
    mesh,
    replay.shards,
    actors=replay.actors,
    batch=replay.batch,
    capacity=replay.capacity,
  )
  new = shares["actors"] * len(starts)  # New sequences of a step in a shard.
  if shares["capacity"] < max(new, shares["batch"]):
    raise ValueError(
      f"capacity={replay.capacity}: must hold the "
      f"{new * num_shards} sequences of one step, and a batch."
    )
  num_updates = updates_per_step(replay, tasks.num_steps)
  buffer = make_buffer(replay, num_shards)
  over_shards = functools.partial(for_each_shard, held)
  epsilons = epsilon_ladder(replay.actors, replay.epsilon, replay.alpha)

  def act(
    params: Params, rng: PRNGKey, actor: Array
  ) -> tuple[tuple[Sequence, Array], Array]:
    player = q_player(network, params, num_actions, epsilons[actor])
    trial = play(player, tasks, jax.random.fold_in(rng, actor))
    sequences = cut(trial, replay.length, replay.period)
    if replay.priority_exponent == 0:  # Sampling is uniform.
      priorities = jnp.ones(len(starts))
    else:
      priorities = acting_priorities(
        network, params, trial, sequences, objective
      )
    return (sequences, priorities), trial.rewards.sum()

  def draw(stored: Any, rng: PRNGKey) -> tuple[Any, Array]:
    sample = without_empty(buffer.sample(stored, rng))
    count = jnp.where(stored.is_full, shares["capacity"], stored.current_index)
    return sample, importance_weights(
      sample.probabilities, count, replay.importance_exponent
    )

  def update(index, carry, rng):
    params, state, _ = carry
    rng = jax.random.fold_in(rng, index)
    shards = jax.lax.axis_index(TASKS) * held + jnp.arange(held)
    sample, weights = over_shards(draw)(
      state.buffer, jax.vmap(jax.random.fold_in, (None, 0))(rng, shards)
    )

    def mean_loss(params: Params) -> tuple[Array, tuple[Array, Metrics]]:
      # The loss is a mean over shards of one loss each. Shards may differ in
      # the number of steps that count. One device and several thus compute the
      # same loss.
      losses, (priorities, metrics) = over_shards(
        lambda experience, weights: replay_loss(
          network, params, state.target_params, experience, weights, objective
        )
      )(sample.experience, weights)
      return losses.mean(), (priorities, jax.tree.map(jnp.mean, metrics))

    grads, (priorities, metrics) = jax.grad(mean_loss, has_aux=True)(params)
    grads, metrics = mean_over_devices((grads, metrics), like=grads)
    # The loop carries float32 metrics, for networks of any dtype.
    metrics = jax.tree.map(lambda x: x.astype(jnp.float32), metrics)
    # `next_state` counts an update only if it is finite.
    updates, params, opt_state = next_state(
      optimizer,
      TrainState(state.updates, params, state.optimizer),
      grads,
      metrics["loss"],
    )
    return (
      params,
      ReplayState(
        opt_state,
        optax.periodic_update(
          params, state.target_params, updates, replay.target_period
        ),
        updates,
        over_shards(functools.partial(set_priorities, buffer))(
          state.buffer, sample.indices, priorities
        ),
      ),
      metrics,
    )

  def device_step(
    state: TrainState, rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    params, kept = state.meta_params, state.opt_state
    rng = jax.random.fold_in(rng, state.step)
    act_key, learn_key = jax.random.split(rng)
    num_actors = held * shares["actors"]
    first = jax.lax.axis_index(TASKS) * num_actors
    new, totals = jax.vmap(act, (None, None, 0))(
      params, act_key, first + jnp.arange(num_actors)
    )
    store = over_shards(functools.partial(add, buffer))
    kept = kept._replace(buffer=store(kept.buffer, *apart(together(new), held)))
    # All shards hold the same number of sequences, so one tells for all.
    ready = over_shards(buffer.can_sample)(kept.buffer)[0]
    nothing = {"loss": jnp.float32(0), "q": jnp.float32(0)}
    due = jnp.where(ready, num_updates, 0)
    after = kept.updates + due
    params, kept, metrics = jax.lax.fori_loop(
      0,
      due,
      functools.partial(update, rng=learn_key),
      (params, kept, nothing),
    )
    every = jax.lax.all_gather(totals, TASKS)
    metrics |= {"reward": every.mean(), "greedy_reward": every[-1, -1]}
    # If one update was not finite, the step keeps none of its updates.
    every = kept.updates == after
    before = state.meta_params, state.opt_state._replace(buffer=None)
    params, learned = jax.tree.map(
      lambda x, old: jnp.where(every, x, old),
      (params, kept._replace(buffer=None)),
      before,
    )
    kept = learned._replace(buffer=kept.buffer)
    step = state.step + jnp.where(every, 1, 0)
    return TrainState(step, params, kept), metrics

  everywhere: Any = P()
  split: Any = P(TASKS)
  places = TrainState(
    everywhere,
    everywhere,
    ReplayState(everywhere, everywhere, everywhere, split),
  )
  step, where = with_split_state(device_step, mesh, places)

  @functools.partial(jax.jit, out_shardings=where)
  def init(rng: PRNGKey) -> TrainState:
    params = first_params(network, tasks, rng)
    (sequences, _), _ = jax.eval_shape(act, params, rng, jnp.int32(0))
    empty = buffer.init(
      jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), sequences)
    )
    return TrainState(
      jnp.int32(0),
      params,
      ReplayState(
        optimizers.init(optimizer, params),
        params,
        jnp.int32(0),
        jax.tree.map(lambda x: jnp.stack([x] * num_shards), empty),
      ),
    )

  rng = place(rng, NamedSharding(mesh, P()))
  return trainer_on(mesh, init, mean_over_steps(step, rng))
