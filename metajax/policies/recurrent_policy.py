"""Policies of recurrent networks: as players, and along played trials."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent, unroll
from metajax.numerics import wide
from metajax.players.recurrent import encode
from metajax.policies.distributions import (
  Categorical,
  DiagonalGaussian,
  Distribution,
)
from metajax.tasks.playable import Actions, Discrete, as_actions
from metajax.tasks.trials import Player, Step
from metajax.types import Array, Params, PRNGKey

# The smallest standard deviation of a continuous action.
LEAST_SCALE = 1e-3


def num_outputs(actions: Actions | int) -> int:
  """Returns the outputs that a network needs, without the value.

  They are the logits of discrete actions. For `Continuous(d)` they are d means
  and the logarithms of d standard deviations.
  """
  actions = as_actions(actions)
  if isinstance(actions, Discrete):
    return actions.number
  return 2 * actions.size


def policy_player(
  network: Recurrent,
  params: Params,
  actions: Actions | int,
  *,
  greedy: bool = False,
) -> Player:
  """Builds a player that samples actions from a recurrent policy.

  If `greedy`, it takes the most probable action instead. Its memory is the
  state of the network, which also reads the last action and its reward.

  Raises:
    ValueError: from `act`, if the network's head does not return
      `num_outputs(actions)` numbers and a value.
  """

  def act(memory: Any, step: Step, rng: PRNGKey) -> tuple[Array, Any]:
    hidden, memory = network.read(params, memory, encode(step, actions))
    policy, _ = checked_policy(network.head(params, hidden), actions)
    return policy.mode() if greedy else policy.sample(rng), memory

  return Player(network.start, act)


def checked_policy(
  outputs: Any, actions: Actions | int
) -> tuple[Distribution, Array]:
  """Returns the distribution and the values of a head, float32 at least.

  Args:
    outputs: a pair, `[..., num_outputs(actions)]` and values `[...]`.
    actions: the actions.

  Raises:
    ValueError: if the head does not return such a pair.
  """
  if not isinstance(outputs, tuple) or len(outputs) != 2:
    raise ValueError(
      "network: its head gives no pair of logits and value; build it with "
      'head="actor_critic".'
    )
  numbers, values = outputs
  actions = as_actions(actions)
  needed = num_outputs(actions)
  if numbers.shape != (*values.shape, needed):
    given = f"network: its head gives {numbers.shape[-1]}"
    if isinstance(actions, Discrete):
      told = f"{given} logits, but there are num_actions={needed}"
    else:
      told = f"{given} outputs, but {actions} needs {needed}"
    raise ValueError(f"{told}; build it with so many outputs.")
  return _distribution(wide(numbers), actions), wide(values)


def _distribution(numbers: Array, actions: Actions) -> Distribution:
  if isinstance(actions, Discrete):
    return Categorical(numbers)
  mean, log_scale = jnp.split(numbers, 2, axis=-1)
  return DiagonalGaussian(mean, jnp.maximum(log_scale, jnp.log(LEAST_SCALE)))


def hidden_along(
  network: Recurrent, params: Params, steps: Step, actions: Actions | int
) -> Array:
  """Reads trials `[trials, T + 1, ...]`; returns `[trials, T + 1, units]`."""
  inputs = encode(steps, actions).swapaxes(0, 1)
  start = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (inputs.shape[1], *x.shape)), network.start()
  )
  hidden, _ = unroll(network, params, start, inputs, steps.first.swapaxes(0, 1))
  return hidden.swapaxes(0, 1)


def policy_and_values(
  network: Recurrent, params: Params, steps: Step, actions: Actions | int
) -> tuple[Distribution, Array]:
  """Computes the distributions of actions and the values along trials.

  Args:
    network: a network with an "actor_critic" head.
    params: the parameters of the network.
    steps: `[trials, T + 1, ...]`.
    actions: the actions of the tasks.

  Returns:
    The distributions of the actions of all steps but the last, `[trials, T]`,
    and values `[trials, T + 1]`, in the unit of `value_scale`.
  """
  hidden = hidden_along(network, params, steps, actions)
  return of_hidden(network, params, hidden, actions)


def of_hidden(
  network: Recurrent, params: Params, hidden: Array, actions: Actions | int
) -> tuple[Distribution, Array]:
  """Computes what `policy_and_values` does, from `hidden_along`."""
  policy, values = checked_policy(network.head(params, hidden), actions)
  policy = jax.tree.map(lambda x: x[:, :-1], policy)
  return policy, values
