"""VariBAD's decoder: what it reads of a trial; a product of two networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.forward import forward
from metajax.models.mlp import MLP
from metajax.numerics import wide
from metajax.players.recurrent import encode_action
from metajax.tasks.playable import Actions
from metajax.tasks.trials import Step
from metajax.types import Array, Params, PRNGKey


def transitions(
  steps: Step, actions: Actions
) -> tuple[Array, Array, Array, Array]:
  """Returns s, a, s' and end of a trial's actions, `[T, ...]` each.

  Discrete actions are one-hot.
  """
  observations = steps.observation.reshape(*steps.reward.shape, -1)
  ended = steps.ended[1:, None]
  return (
    observations[:-1],
    encode_action(steps.action[1:], actions),
    jnp.where(ended, 0.0, observations[1:]),
    ended.astype(observations.dtype),
  )


def product(units: int) -> tuple[Callable[..., Params], Callable[..., Array]]:
  """Builds `init` and `apply` of `f(m) . g(x)`, with several outputs."""

  def networks(outputs: int) -> tuple[Any, Any]:
    hidden = (units, units)
    return forward(MLP(units, hidden)), forward(MLP(units * outputs, hidden))

  def init(rng: PRNGKey, m: Array, features: int, outputs: int) -> Params:
    of_m, of_x = networks(outputs)
    keys = jax.random.split(rng)
    x = jnp.zeros((1, features))
    return {"m": of_m.init(keys[0], m), "x": of_x.init(keys[1], x)}

  def apply(params: Params, m: Array, x: Array, outputs: int) -> Array:
    of_m, of_x = networks(outputs)
    left = of_m.apply(params["m"], m)
    right = of_x.apply(params["x"], x).reshape(x.shape[0], units, outputs)
    return wide(jnp.einsum("ku,tuo->kto", left, right))

  return init, apply
