"""RL^2: a recurrent policy learns a task in its state, and PPO trains it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.models.recurrent import Recurrent, unroll
from metajax.numerics import check_number, wide
from metajax.players.recurrent import check_head, encode, first_params
from metajax.policies.advantages import generalized_advantages
from metajax.policies.surrogates import clipped
from metajax.tasks.trials import Player, Step, Trials, play
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  first_state,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import Array, Metrics, Params, PRNGKey


class PPO(NamedTuple):
  """Configures PPO.

  Attributes:
    actors: number of tasks that are played in a step, on all devices together.
    epochs: number of passes over the trials of a step.
    minibatches: number of updates in an epoch. The trials are split over them.
    discount: discount of one step.
    gae: lambda of generalised advantage estimation, from 0 to 1.
    clip: c of `ppo_loss`. The probability ratio is clipped to [1 - c, 1 + c].
    entropy: weight of the policy's entropy.
    value: weight of the value's squared error.
  """

  actors: int = 64
  epochs: int = 4
  minibatches: int = 4
  discount: float = 0.99
  gae: float = 0.3
  clip: float = 0.2
  entropy: float = 0.01
  value: float = 0.5


class Rollout(NamedTuple):
  """Trials, with the outputs of the policy that played them.

  Attributes:
    steps: `[trials, T + 1, ...]`.
    log_probs: `[trials, T]`, log-probabilities of the taken actions.
    advantages: `[trials, T]`.
    returns: `[trials, T]`, the targets of the values.
  """

  steps: Step
  log_probs: Array
  advantages: Array
  returns: Array


def policy_player(
  network: Recurrent, params: Params, num_actions: int, *, greedy: bool = False
) -> Player:
  """Builds a player that samples actions from a recurrent policy.

  If `greedy`, it takes the most probable action instead. Its memory is the
  state of the network, which also reads the last action and its reward.

  Raises:
    ValueError: from `act`, if the network's head does not return logits of
      `num_actions` actions and a value.
  """

  def act(memory: Any, step: Step, rng: PRNGKey) -> tuple[Array, Any]:
    hidden, memory = network.read(params, memory, encode(step, num_actions))
    logits, _ = checked_policy(network.head(params, hidden), num_actions)
    if greedy:
      return logits.argmax(), memory
    return jax.random.categorical(rng, logits), memory

  return Player(network.start, act)


def checked_policy(outputs: Any, num_actions: int) -> tuple[Array, Array]:
  """Returns a head's logits `[..., num_actions]` and values, float32 at least.

  Raises:
    ValueError: if the head does not return such a pair.
  """
  if not isinstance(outputs, tuple) or len(outputs) != 2:
    raise ValueError(
      "network: its head gives no pair of logits and value; build it with "
      'head="actor_critic".'
    )
  logits, values = outputs
  if logits.shape != (*values.shape, num_actions):
    raise ValueError(
      f"network: its head gives {logits.shape[-1]} logits, but there are "
      f"num_actions={num_actions}; build it with so many outputs."
    )
  return wide(logits), wide(values)


def policy_and_values(
  network: Recurrent, params: Params, steps: Step, num_actions: int
) -> tuple[Array, Array]:
  """Computes the log-probabilities and values along trials.

  Args:
    network: a network with an "actor_critic" head.
    params: the parameters of the network.
    steps: `[trials, T + 1, ...]`.
    num_actions: number of actions of the tasks.

  Returns:
    Log-probabilities `[trials, T, actions]` and values `[trials, T + 1]`. The
    last value of a trial is 0, because the task is over.
  """
  inputs = encode(steps, num_actions).swapaxes(0, 1)
  start = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (inputs.shape[1], *x.shape)), network.start()
  )
  hidden, _ = unroll(network, params, start, inputs, steps.first.swapaxes(0, 1))
  logits, values = checked_policy(
    network.head(params, hidden.swapaxes(0, 1)), num_actions
  )
  return jax.nn.log_softmax(logits[:, :-1]), values.at[:, -1].set(0.0)


def ppo_loss(
  network: Recurrent,
  params: Params,
  rollout: Rollout,
  num_actions: int,
  ppo: PPO,
) -> tuple[Array, Metrics]:
  """Computes PPO's loss (Schulman et al. 2017, equations 7 and 9).

  ::

    L = mean( -min(rho A, clip(rho, 1 - c, 1 + c) A)
              + value (V - R)^2 / 2 - entropy H )

  where rho is the ratio of the new to the old probability of an action, V are
  the values and R the returns, and H is the entropy of the policy. The
  advantages A of the rollout are scaled to mean 0 and standard deviation 1.
  """
  log_policy, values = policy_and_values(
    network, params, rollout.steps, num_actions
  )
  chosen = _of_actions(log_policy, rollout.steps)
  advantages = rollout.advantages
  advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
  every = jnp.ones(advantages.shape, bool)
  policy = clipped(ppo.clip)(chosen, rollout.log_probs, advantages, every)
  error = 0.5 * jnp.square(values[:, :-1] - rollout.returns).mean()
  entropy = -(jnp.exp(log_policy) * log_policy).sum(-1).mean()
  loss = policy + ppo.value * error - ppo.entropy * entropy
  return loss, {"loss": loss, "value_error": error, "entropy": entropy}


def ppo_trainer(
  network: Recurrent,
  tasks: Trials,
  optimizer: optax.GradientTransformation,
  ppo: PPO,
  *,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer of RL^2, which learns on policy from whole trials.

  In a step, every actor plays one new task from beginning to end. The trainer
  learns from these trials for some epochs, and then drops them. Actors are
  split over the devices, and gradients are averaged over the devices.

  Args:
    network: a network with an "actor_critic" head.
    tasks: the tasks to play.
    optimizer: any optax optimizer.
    ppo: the configuration of PPO.
    rng: the key of all tasks, actions and minibatches.
    mesh: a mesh with the axis "tasks". If None, it is `task_mesh(actors)`.

  Returns:
    A `Trainer`. Its metrics are "loss", "value_error" and "entropy", means over
    the updates of a step, and "reward", the mean total reward of a trial.

  Raises:
    ValueError: if the number of actors is not a multiple of devices times
      minibatches; if a number is out of its range; or if the network's head
      does not fit the tasks.

  References:
    Duan et al., `RL^2: Fast Reinforcement Learning via Slow Reinforcement
    Learning <https://arxiv.org/abs/1611.02779>`_, 2016 (by TRPO).
    Schulman et al., `Proximal Policy Optimization Algorithms
    <https://arxiv.org/abs/1707.06347>`_, 2017.
  """
  mesh = task_mesh(ppo.actors) if mesh is None else mesh
  if ppo.epochs < 1 or ppo.minibatches < 1:
    raise ValueError(
      f"epochs={ppo.epochs}, minibatches={ppo.minibatches}: must be 1 or more."
    )
  for name, highest in {
    "discount": 1,
    "gae": 1,
    "entropy": None,
    "value": None,
  }.items():
    check_number(name, getattr(ppo, name), at_least=0, at_most=highest)
  check_number("clip", ppo.clip, above=0)
  check_head(network, tasks, checked_policy)
  share, rest = divmod(ppo.actors, mesh.size)
  if rest or share < 1 or share % ppo.minibatches:
    raise ValueError(
      f"actors={ppo.actors}: must be a positive multiple of "
      f"{mesh.size * ppo.minibatches}: {mesh.size} devices with "
      f"{ppo.minibatches} minibatches each."
    )

  def gather(params: Params, rng: PRNGKey, first: Array) -> Rollout:
    player = policy_player(network, params, tasks.num_actions)
    steps = jax.vmap(
      lambda actor: play(player, tasks, jax.random.fold_in(rng, actor)).steps
    )(first + jnp.arange(share))
    log_policy, values = policy_and_values(
      network, params, steps, tasks.num_actions
    )
    advantages = jax.vmap(
      lambda r, v: generalized_advantages(r, v, ppo.discount, ppo.gae)
    )(steps.reward[:, 1:], values)
    log_probs = _of_actions(log_policy, steps)
    return Rollout(steps, log_probs, advantages, advantages + values[:, :-1])

  def device_step(
    state: TrainState, rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(rng, state.step)
    act_key, learn_key = jax.random.split(rng)
    device = jax.lax.axis_index(TASKS)
    rollout = gather(state.meta_params, act_key, device * share)
    learn_key = jax.random.fold_in(learn_key, device)
    orders = jax.vmap(lambda key: jax.random.permutation(key, share))(
      jax.random.split(learn_key, ppo.epochs)
    )

    def update(inner: TrainState, chosen: Array) -> tuple[TrainState, Metrics]:
      part = jax.tree.map(lambda x: x[chosen], rollout)
      grads, metrics = jax.grad(
        lambda p: ppo_loss(network, p, part, tasks.num_actions, ppo),
        has_aux=True,
      )(inner.meta_params)
      grads, metrics = jax.lax.pmean((grads, metrics), TASKS)
      return next_state(optimizer, inner, grads, metrics["loss"]), metrics

    inner, metrics = jax.lax.scan(
      update, state, orders.reshape(ppo.epochs * ppo.minibatches, -1)
    )
    metrics = {k: v.mean() for k, v in metrics.items()}
    reward = rollout.steps.reward.sum(-1).mean()
    metrics["reward"] = jax.lax.pmean(reward, TASKS)
    # If one update was not finite, the step keeps none of its updates.
    every = inner.step - state.step == ppo.epochs * ppo.minibatches
    inner = inner._replace(step=state.step + 1)
    new = jax.tree.map(lambda x, old: jnp.where(every, x, old), inner, state)
    return new, metrics

  step = jax.shard_map(
    device_step, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
  )
  replicated = NamedSharding(mesh, P())

  @functools.partial(jax.jit, out_shardings=replicated)
  def init(rng: PRNGKey) -> TrainState:
    params = first_params(network, tasks, rng)
    return first_state(optimizer, params)

  rng = place(rng, replicated)
  return trainer_on(mesh, init, mean_over_steps(step, rng))


def _of_actions(log_policy: Array, steps: Step) -> Array:
  """Returns the log-probabilities of the taken actions, `[trials, T]`."""
  actions = steps.action[:, 1:, None]
  return jnp.take_along_axis(log_policy, actions, -1)[..., 0]
