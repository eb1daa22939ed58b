"""Policies of recurrent networks: as players, and along played trials."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent, unroll
from metajax.numerics import wide
from metajax.players.recurrent import encode
from metajax.tasks.trials import Player, Step
from metajax.types import Array, Params, PRNGKey


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


def hidden_along(
  network: Recurrent, params: Params, steps: Step, num_actions: int
) -> Array:
  """Reads trials `[trials, T + 1, ...]`; returns `[trials, T + 1, units]`."""
  inputs = encode(steps, num_actions).swapaxes(0, 1)
  start = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (inputs.shape[1], *x.shape)), network.start()
  )
  hidden, _ = unroll(network, params, start, inputs, steps.first.swapaxes(0, 1))
  return hidden.swapaxes(0, 1)


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
  hidden = hidden_along(network, params, steps, num_actions)
  return of_hidden(network, params, hidden, num_actions)


def of_hidden(
  network: Recurrent, params: Params, hidden: Array, num_actions: int
) -> tuple[Array, Array]:
  """Computes what `policy_and_values` does, from `hidden_along`."""
  logits, values = checked_policy(network.head(params, hidden), num_actions)
  return jax.nn.log_softmax(logits[:, :-1]), values.at[:, -1].set(0.0)


def of_actions(log_policy: Array, steps: Step) -> Array:
  """Returns the log-probabilities of the taken actions, `[trials, T]`."""
  actions = steps.action[:, 1:, None]
  return jnp.take_along_axis(log_policy, actions, -1)[..., 0]
