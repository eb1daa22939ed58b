"""Several seeds in one program: a leading axis of everything but the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.numerics import wide
from metajax.training.state import TrainState, choose
from metajax.types import MetaLearner, Metrics, Params, PRNGKey

Update = Callable[
  [TrainState, Params, Metrics, Any], tuple[TrainState, Metrics]
]
STATE_AXES = TrainState(None, 0, 0)  # type: ignore[arg-type]


class Points(NamedTuple):
  """Trainings that differ in numbers, not in their seed alone.

  Attributes:
    numbers: a tree of arrays `[S]`, step sizes, say.
    make: `(numbers of one) -> (learner, optimizer)`; all states must have the
      same shapes.
  """

  numbers: Any
  make: Callable[[Any], tuple[MetaLearner, optax.GradientTransformation]]


def count(rng: PRNGKey) -> int | None:
  """Returns S for keys `[S]`, and None for one key, typed or raw."""
  typed = jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key)
  shape = rng.shape if typed else rng.shape[:-1]
  return shape[0] if shape else None


def together(update: Update, *, means: bool = True) -> Update:
  """Lets an update of one seed's state update the states of many.

  Where one seed does not advance, none does, so that they stay in step.

  Args:
    update: `(state, grads, metrics, draw) -> (state, metrics)`.
    means: whether the metrics that come out are means over seeds, or `[S]`.

  Returns:
    The same for `[S]` of each. The step has no axis of seeds.
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
  """Lets `(draw, ...) -> state` take keys `[S]`, one for each seed."""

  def init_all(draw: Any, *arguments: Any) -> TrainState:
    states = jax.vmap(lambda one: init(one, *arguments))(draw)
    return states._replace(step=jnp.int32(0))

  return init_all
