"""Players that take the actions of a recurrent Q-network."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.models.recurrent import Recurrent
from metajax.numerics import check_counts, check_number, wide
from metajax.players.recurrent import encode
from metajax.tasks.trials import Player, Step
from metajax.types import Array, Params, PRNGKey


def q_player(
  network: Recurrent, params: Params, num_actions: int, epsilon: ArrayLike
) -> Player:
  """Builds an epsilon-greedy player of a Q-network.

  With probability `epsilon` it takes a uniformly random action, otherwise the
  action of highest value. Its memory is the state of the network, which also
  reads the last action and its reward.

  Raises:
    ValueError: if `epsilon` is not a probability. From `act`, if the network's
      head does not return `num_actions` values.
  """
  check_number("epsilon", epsilon, at_least=0, at_most=1)

  def act(memory: Any, step: Step, rng: PRNGKey) -> tuple[Array, Any]:
    values, memory = action_values(network, params, memory, step, num_actions)
    best = values.argmax()
    explore_key, action_key = jax.random.split(rng)
    any_action = jax.random.randint(action_key, (), 0, num_actions)
    explores = jax.random.bernoulli(explore_key, epsilon)
    return jnp.where(explores, any_action, best), memory

  return Player(network.start, act)


def action_values(
  network: Recurrent,
  params: Params,
  memory: Any,
  step: Step,
  num_actions: int,
) -> tuple[Array, Any]:
  """Computes the values of actions after steps `[...]` at given states.

  Returns:
    The values of the actions, `[..., num_actions]`, and the new states.
  """
  hidden, memory = network.read(params, memory, encode(step, num_actions))
  return checked_values(network.head(params, hidden), num_actions), memory


def checked_values(values: Any, num_actions: int) -> Array:
  """Returns a head's values `[..., num_actions]`, in float32 at least.

  Raises:
    ValueError: if the head returns no array or another number of values.
  """
  shape = getattr(values, "shape", None)
  if shape is None or shape[-1:] != (num_actions,):
    given = "no single array" if shape is None else f"{shape[-1:][0]} outputs"
    raise ValueError(
      f"network: its head gives {given}, but there are num_actions="
      f"{num_actions}; build it with so many outputs and a head of values, "
      '"dueling" or "linear".'
    )
  return wide(values)


def epsilon_ladder(
  num_actors: int, epsilon: ArrayLike = 0.4, alpha: ArrayLike = 7.0
) -> Array:
  """Returns the exploration of each actor, `[num_actors]`.

  ::

    epsilon_i = epsilon^(1 + alpha i / (N - 1))   for actor i of N

  Raises:
    ValueError: if `epsilon` is not a probability, `alpha` is negative, or the
      number of actors not positive.

  References:
    Horgan et al. 2018 (see `learning.acting_priorities`).
  """
  check_number("epsilon", epsilon, at_least=0, at_most=1)
  check_number("alpha", alpha, at_least=0)
  check_counts(num_actors=num_actors)
  place = jnp.arange(num_actors) / max(num_actors - 1, 1)
  return jnp.power(epsilon, 1 + alpha * place)
