"""Acting and learning in one compiled loop."""

import functools
from typing import Any, NamedTuple

import flashbax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.models.recurrent import Recurrent
from metajax.replay.learning import Objective, replay_loss
from metajax.replay.players import epsilon_ladder, q_player
from metajax.replay.sequences import Sequence, cut, encode, sequence_starts
from metajax.replay.values import importance_weights
from metajax.tasks.trials import Trials, first_step, play
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  mean_over_steps,
  next_state,
)
from metajax.types import Array, Metrics, Params, PRNGKey


class Replay(NamedTuple):
  """How experience is gathered and repeated.

  Attributes:
    actors: tasks played at once, on all devices together.
    length: actions of a stored sequence.
    period: actions from the start of one sequence to that of the next.
    capacity: sequences that are kept, on all devices together.
    batch: sequences of an update, likewise.
    ratio: how often a sequence is learned from, on average: updates after a
      trial are `ratio * new sequences / batch`, rounded, and at least one.
    epsilon: of the actor that explores most, see `epsilon_ladder`.
    alpha: of that ladder.
    priority_exponent: 0 samples uniformly.
    importance_exponent: 0 makes up for nothing.
    target_period: updates between two copies to the target network.
  """

  actors: int = 64
  length: int = 40
  period: int = 20
  capacity: int = 10_000
  batch: int = 64
  ratio: float = 1.0
  epsilon: float = 0.4
  alpha: float = 7.0
  priority_exponent: float = 0.9
  importance_exponent: float = 0.6
  target_period: int = 100


class ReplayState(NamedTuple):
  """What is kept beside the parameters.

  Attributes:
    optimizer: the optimizer's state.
    target_params: the target network's.
    updates: int32, how many there were.
    buffer: flashbax's state, `[devices, ...]`: each has its own.
  """

  optimizer: optax.OptState
  target_params: Params
  updates: Array
  buffer: Any


def updates_per_step(replay: Replay, num_steps: int) -> int:
  """Returns how often the network is updated after each trial."""
  starts = sequence_starts(num_steps, replay.length, replay.period)
  return max(
    1, round(replay.ratio * replay.actors * len(starts) / replay.batch)
  )


def make_buffer(replay: Replay, num_devices: int = 1) -> Any:
  """Makes a device's share of the buffer, a flashbax one of whole sequences."""
  return flashbax.make_prioritised_item_buffer(
    max_length=replay.capacity // num_devices,
    min_length=replay.batch // num_devices,
    sample_batch_size=replay.batch // num_devices,
    add_batches=True,
    priority_exponent=replay.priority_exponent,
    device=jax.default_backend(),
  )


def _without_empty(sample: Any) -> Any:
  """Puts a sampled sequence in the place of those that are none.

  The sums of flashbax's tree are float32 and drift, so that a draw in thousands
  falls behind the last sequence, on one of probability 0.
  """
  exists = sample.probabilities > 0
  place = jnp.where(exists, jnp.arange(exists.size), exists.argmax())
  return jax.tree.map(lambda x: x[place], sample)


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

  A step lets every actor play one new task from beginning to end, stores its
  sequences, and then updates the network from sampled ones (Kapturowski et al.
  2019; the recurrent state learns within a task as in Duan et al. 2016). Actors
  and buffer are split over the devices, gradients are averaged. The first steps
  only fill the buffer, up to a batch.

  Args:
    network: with a "dueling" or "linear" head of one output an action.
    tasks: what is played.
    optimizer: any optax optimizer.
    objective: what is learned from a sequence.
    replay: how experience is gathered and repeated.
    rng: the key of all tasks, actions and samples.
    mesh: a mesh with the axis "tasks"; None: `task_mesh(actors)`.

  Returns:
    A `Trainer`, whose metrics are "loss", "q" (the mean value of the actions
    taken), "reward" (the mean total of a trial, by all actors) and
    "greedy_reward" (by the one that explores least).

  Raises:
    ValueError: if the numbers do not fit one another.
  """
  mesh = task_mesh(replay.actors) if mesh is None else mesh
  starts = sequence_starts(tasks.num_steps, replay.length, replay.period)
  if objective.n < 1:
    raise ValueError(f"n={objective.n}: must be 1 or more.")
  if not 0 <= objective.burn_in < replay.length:
    raise ValueError(
      f"burn_in={objective.burn_in}: must be from 0 to {replay.length - 1}, "
      "less than the length of a sequence."
    )
  shares = {}
  for name in ("actors", "batch", "capacity"):
    shares[name], rest = divmod(getattr(replay, name), mesh.size)
    if rest or shares[name] < 1:
      raise ValueError(
        f"{name}={getattr(replay, name)}: must be a positive multiple of "
        f"{mesh.size} devices."
      )
  new = shares["actors"] * len(starts)  # Sequences of a step, on a device.
  if shares["capacity"] < max(new, shares["batch"]):
    raise ValueError(
      f"capacity={replay.capacity}: must hold the "
      f"{new * mesh.size} sequences of one step, and a batch."
    )
  num_updates = updates_per_step(replay, tasks.num_steps)
  buffer = make_buffer(replay, mesh.size)
  epsilons = epsilon_ladder(replay.actors, replay.epsilon, replay.alpha)

  def act(params: Params, rng: PRNGKey, actor: Array) -> tuple[Sequence, Array]:
    player = q_player(network, params, tasks.num_actions, epsilons[actor])
    trial = play(player, tasks, jax.random.fold_in(rng, actor))
    return cut(trial, replay.length, replay.period), trial.rewards.sum()

  def update(index, carry, rng):
    params, state, _ = carry
    rng = jax.random.fold_in(rng, index)
    device_rng = jax.random.fold_in(rng, jax.lax.axis_index(TASKS))
    sample = _without_empty(buffer.sample(state.buffer, device_rng))
    stored = state.buffer
    count = jnp.where(stored.is_full, shares["capacity"], stored.current_index)
    weights = importance_weights(
      sample.probabilities, count, replay.importance_exponent
    )
    grads, (priorities, metrics) = jax.grad(
      lambda p: replay_loss(
        network, p, state.target_params, sample.experience, weights, objective
      ),
      has_aux=True,
    )(params)
    grads, metrics = jax.lax.pmean((grads, metrics), TASKS)
    # Counts its updates, not those that are not finite.
    updates, params, opt_state = next_state(
      optimizer, TrainState(state.updates, params, state.optimizer), grads
    )
    return (
      params,
      ReplayState(
        opt_state,
        optax.periodic_update(
          params, state.target_params, updates, replay.target_period
        ),
        updates,
        # A priority that is not finite would stay in the sums.
        buffer.set_priorities(
          state.buffer,
          sample.indices,
          jnp.where(jnp.isfinite(priorities), priorities, 0.0) + 1e-6,
        ),
      ),
      metrics,
    )

  def device_step(
    state: TrainState, rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    params, kept = state.meta_params, state.opt_state
    kept = kept._replace(buffer=jax.tree.map(lambda x: x[0], kept.buffer))
    rng = jax.random.fold_in(rng, state.step)
    act_key, learn_key = jax.random.split(rng)
    first = jax.lax.axis_index(TASKS) * shares["actors"]
    sequences, totals = jax.vmap(act, (None, None, 0))(
      params, act_key, first + jnp.arange(shares["actors"])
    )
    sequences = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sequences)
    kept = kept._replace(buffer=buffer.add(kept.buffer, sequences))
    ready = buffer.can_sample(kept.buffer)
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
    kept = kept._replace(buffer=jax.tree.map(lambda x: x[None], kept.buffer))
    # Where one update was not finite, none of them is taken.
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
  step = jax.shard_map(
    device_step,
    mesh=mesh,
    in_specs=(places, P()),
    out_specs=(places, P()),
    check_vma=False,
  )
  where = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    places,
    is_leaf=lambda x: isinstance(x, P),
  )

  @functools.partial(jax.jit, out_shardings=where)
  def init(rng: PRNGKey) -> TrainState:
    _, observation = tasks.reset(rng)
    features = encode(first_step(observation), tasks.num_actions)
    params = network.init(rng, features)
    sequences, _ = jax.eval_shape(act, params, rng, jnp.int32(0))
    empty = buffer.init(
      jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), sequences)
    )
    return TrainState(
      jnp.int32(0),
      params,
      ReplayState(
        optimizer.init(params),
        params,
        jnp.int32(0),
        jax.tree.map(lambda x: jnp.stack([x] * mesh.size), empty),
      ),
    )

  rng = place(rng, NamedSharding(mesh, P()))
  return Trainer(init, mean_over_steps(step, rng))
