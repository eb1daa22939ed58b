"""RL^2: a recurrent policy learns a task in its state, and PPO trains it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import optimizers
from metajax.models.recurrent import Recurrent
from metajax.numerics import check_key
from metajax.players.recurrent import check_head, first_params
from metajax.policies.advantages import generalized_advantages
from metajax.policies.ppo import PPO, Rollout, check_ppo, ppo_loss
from metajax.policies.recurrent_policy import (
  checked_policy,
  policy_and_values,
  policy_player,
)
from metajax.policies.value_scale import (
  ValueScale,
  first_scale,
  seen,
  to_outputs,
  to_values,
)
from metajax.tasks.trials import Trials, play
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import Array, Metrics, Params, PRNGKey


class PPOState(NamedTuple):
  """The state of the trainer, without the parameters.

  Attributes:
    policy: the state of the optimizer.
    values: the unit of the network's values.
  """

  policy: optax.OptState
  values: ValueScale


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
    network: a network with an "actor_critic" head, of `num_outputs(actions)`
      outputs.
    tasks: the tasks to play. Actions may be discrete or continuous.
    optimizer: any optax optimizer.
    ppo: the configuration of PPO.
    rng: the key of all tasks, actions and minibatches.
    mesh: a mesh with the axis "tasks". If None, it is `task_mesh(actors)`.

  Returns:
    A `Trainer`. Its metrics are "loss", "value_error" and "entropy", means over
    the updates of a step, and "reward", the mean total reward of a trial. The
    error of values is in the unit of `policies.value_scale`: 0.5 is that of
    values which are the same everywhere.

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
  check_key(rng)
  if mesh is None:
    mesh = task_mesh(ppo.actors, name="actors")
  share = check_ppo(ppo, mesh)
  check_head(network, tasks, lambda head: checked_policy(head, tasks.actions))

  def loss(params: Params, part: Rollout) -> tuple[Array, Metrics]:
    return ppo_loss(network, params, part, tasks.actions, ppo)

  def device_step(
    state: TrainState, rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    params, kept = state.meta_params, state.opt_state
    rng = jax.random.fold_in(rng, state.step)
    act_key, learn_key = jax.random.split(rng)
    device = jax.lax.axis_index(TASKS)
    actors = device * share + jnp.arange(share)
    rollout = gather(network, params, kept.values, tasks, ppo, act_key, actors)
    rollout, values = in_unit(rollout, kept.values, state.step)
    new, metrics = learn(
      optimizer,
      loss,
      TrainState(state.step, params, kept.policy),
      rollout,
      ppo,
      jax.random.fold_in(learn_key, device),
    )
    metrics["reward"] = mean_reward(rollout)
    new = new._replace(opt_state=PPOState(new.opt_state, values))
    return in_one_step(new, state, ppo.epochs * ppo.minibatches), metrics

  step = jax.shard_map(
    device_step, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
  )
  replicated = NamedSharding(mesh, P())

  @functools.partial(jax.jit, out_shardings=replicated)
  def init(rng: PRNGKey) -> TrainState:
    params = first_params(network, tasks, rng)
    kept = PPOState(optimizers.init(optimizer, params), first_scale())
    return TrainState(jnp.int32(0), params, kept)

  rng = place(rng, replicated)
  return trainer_on(mesh, init, mean_over_steps(step, rng))


def gather(
  network: Recurrent,
  params: Params,
  scale: ValueScale,
  tasks: Trials,
  ppo: PPO,
  rng: PRNGKey,
  actors: Array,
) -> Rollout:
  """Lets actors, given by their numbers `[n]`, play one trial each.

  What an actor plays depends on its number, and so does not depend on the
  number of devices. Values, advantages and returns are in the unit of rewards.
  """
  player = policy_player(network, params, tasks.actions)
  steps = jax.vmap(
    lambda actor: play(player, tasks, jax.random.fold_in(rng, actor)).steps
  )(actors)
  policy, outputs = policy_and_values(network, params, steps, tasks.actions)
  values = to_values(scale, outputs).at[:, -1].set(0.0)  # The task is over.

  def estimate(gae: float) -> Array:
    return jax.vmap(
      lambda r, v: generalized_advantages(r, v, ppo.discount, gae)
    )(steps.reward[:, 1:], values)

  log_probs = policy.log_prob(steps.action[:, 1:])
  returns = estimate(ppo.value_gae) + values[:, :-1]
  return Rollout(steps, log_probs, estimate(ppo.gae), returns)


def in_unit(
  rollout: Rollout, scale: ValueScale, step: Array
) -> tuple[Rollout, ValueScale]:
  """Moves the scale to a step's returns, and gives these in its unit."""
  scale = seen(scale, rollout.returns, step)
  returns = to_outputs(scale, rollout.returns)
  return rollout._replace(returns=returns), scale


def learn(
  optimizer: optax.GradientTransformation,
  loss: Callable[[Params, Any], tuple[Array, Metrics]],
  state: TrainState,
  rollout: Any,
  ppo: PPO,
  rng: PRNGKey,
) -> tuple[TrainState, Metrics]:
  """Takes the updates of a step, inside `shard_map`.

  Args:
    optimizer: any optax optimizer.
    loss: `(params, part of the rollout) -> (loss, metrics)`.
    state: the state before. Its parameters are those of the loss.
    rollout: the trials of this device, a tree of arrays `[trials, ...]`.
    ppo: the configuration.
    rng: the key of the minibatches of this device.

  Returns:
    The state, whose `step` counts finite updates, and the mean metrics.
  """
  share = jax.tree.leaves(rollout)[0].shape[0]
  orders = jax.vmap(lambda key: jax.random.permutation(key, share))(
    jax.random.split(rng, ppo.epochs)
  )

  def update(inner: TrainState, chosen: Array) -> tuple[TrainState, Metrics]:
    part = jax.tree.map(lambda x: x[chosen], rollout)
    grads, metrics = jax.grad(lambda p: loss(p, part), has_aux=True)(
      inner.meta_params
    )
    grads, metrics = jax.lax.pmean((grads, metrics), TASKS)
    return next_state(optimizer, inner, grads, metrics["loss"]), metrics

  inner, metrics = jax.lax.scan(
    update, state, orders.reshape(ppo.epochs * ppo.minibatches, -1)
  )
  return inner, {k: v.mean() for k, v in metrics.items()}


def mean_reward(rollout: Rollout) -> Array:
  """Returns the mean total reward of a trial, on all devices."""
  return jax.lax.pmean(rollout.steps.reward.sum(-1).mean(), TASKS)


def in_one_step(new: TrainState, old: TrainState, updates: int) -> TrainState:
  """Returns the state after so many updates, which count as one step.

  If one update was not finite, the step keeps none of its updates.
  """
  every = new.step - old.step == updates
  new = new._replace(step=old.step + 1)
  return jax.tree.map(lambda x, y: jnp.where(every, x, y), new, old)
