"""Trains several seeds in one program, with a leading axis of seeds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.numerics import check_key, wide
from metajax.training.state import TrainState, choose
from metajax.types import MetaLearner, Metrics, Params, PRNGKey

Update = Callable[
  [TrainState, Params, Metrics, Any], tuple[TrainState, Metrics]
]
STATE_AXES = TrainState(None, 0, 0)  # type: ignore[arg-type]


class Points(NamedTuple):
  """S trainings that differ in hyper-parameters as well as in their seeds.

  Attributes:
    numbers: a tree of arrays `[S]`, such as step sizes.
    make: `(numbers of one training) -> (learner, optimizer)`. All states must
      have the same shapes.
  """

  numbers: Any
  make: Callable[[Any], tuple[MetaLearner, optax.GradientTransformation]]


def count(rng: PRNGKey) -> int | None:
  """Returns S for keys `[S]`, and None for one key. Keys are typed or raw.

  Raises:
    ValueError: for a number, such as a seed.
  """
  check_key(rng)
  typed = jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key)
  shape = rng.shape if typed else rng.shape[:-1]
  return shape[0] if shape else None


def together(update: Update, *, means: bool = True) -> Update:
  """Maps the update of one seed's state over the states of S seeds.

  If the state of one seed does not advance, no state advances. All seeds
  therefore have the same step.

  Args:
    update: `(state, grads, metrics, draw) -> (state, metrics)`.
    means: whether to average the returned metrics over the seeds.

  Returns:
    A function with the same arguments, each with a leading axis `[S]` except
    for the step. The returned metrics are means over the seeds, or `[S]`.
  """

  def update_all(state, grads, metrics, draw):
    new, metrics = jax.vmap(update, (STATE_AXES, 0, 0, 0))(
      state, grads, metrics, draw
    )
    step = new.step.min()
    new = choose(step > state.step, new._replace(step=step), state)
    if means:
      metrics = jax.tree.map(lambda x: wide(x).mean(0), metrics)
    return new, metrics

  return update_all


def from_keys(
  init: Callable[..., TrainState],
) -> Callable[..., TrainState]:
  """Maps `(draw, ...) -> state` over keys `[S]`, one for each seed."""

  def init_all(draw: Any, *arguments: Any) -> TrainState:
    states = jax.vmap(lambda one: init(one, *arguments))(draw)
    return states._replace(step=jnp.int32(0))

  return init_all
