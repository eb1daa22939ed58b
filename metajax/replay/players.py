"""The fast learner: a recurrent network that plays."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent
from metajax.replay.sequences import encode
from metajax.tasks.trials import Player, Step
from metajax.types import Array, Params, PRNGKey


def q_player(
  network: Recurrent, params: Params, num_actions: int, epsilon: Array | float
) -> Player:
  """Takes the action of highest value; with probability `epsilon` any action.

  Its memory is the network's state, fed with what each action brought.
  """

  def act(memory: Any, step: Step, rng: PRNGKey) -> tuple[Array, Any]:
    hidden, memory = network.read(params, memory, encode(step, num_actions))
    best = network.head(params, hidden).argmax()
    explore_key, action_key = jax.random.split(rng)
    any_action = jax.random.randint(action_key, (), 0, num_actions)
    explores = jax.random.bernoulli(explore_key, epsilon)
    return jnp.where(explores, any_action, best), memory

  return Player(network.start, act)


def epsilon_ladder(
  num_actors: int, epsilon: float = 0.4, alpha: float = 7.0
) -> Array:
  """`epsilon^(1 + alpha i / (N - 1))` for actor i of N (Horgan et al. 2018)."""
  place = jnp.arange(num_actors) / max(num_actors - 1, 1)
  return epsilon ** (1 + alpha * place)
