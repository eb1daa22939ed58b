"""Trains several seeds in one program, with a leading axis of seeds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.numerics import wide
from metajax.training.state import TrainState, choose
from metajax.types import Metrics, Params, PRNGKey

Update = Callable[
  [TrainState, Params, Metrics, PRNGKey], tuple[TrainState, Metrics]
]
STATE_AXES = TrainState(None, 0, 0)  # type: ignore[arg-type]


def count(rng: PRNGKey) -> int | None:
  """Returns S for keys `[S]`, and None for one key. Keys are typed or raw."""
  typed = jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key)
  shape = rng.shape if typed else rng.shape[:-1]
  return shape[0] if shape else None


def together(update: Update) -> Update:
  """Maps the update of one seed's state over the states of S seeds.

  If the state of one seed does not advance, no state advances. All seeds
  therefore have the same step.

  Args:
    update: `(state, grads, metrics, rng) -> (state, metrics)`.

  Returns:
    A function with the same arguments, each with a leading axis `[S]` except
    for the step. The returned metrics are means over the seeds.
  """

  def update_all(state, grads, metrics, rng):
    new, metrics = jax.vmap(update, (STATE_AXES, 0, 0, 0))(
      state, grads, metrics, rng
    )
    step = new.step.min()
    new = choose(step > state.step, new._replace(step=step), state)
    return new, jax.tree.map(lambda x: wide(x).mean(0), metrics)

  return update_all


def from_keys(
  init: Callable[..., TrainState],
) -> Callable[..., TrainState]:
  """Maps `(rng, ...) -> state` over keys `[S]`, one for each seed."""

  def init_all(rng: PRNGKey, *arguments: Any) -> TrainState:
    states = jax.vmap(lambda key: init(key, *arguments))(rng)
    return states._replace(step=jnp.int32(0))

  return init_all
