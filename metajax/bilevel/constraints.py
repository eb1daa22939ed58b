"""Constrained hyper-parameters as functions of unconstrained ones."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.numerics import check_number
from metajax.types import Array


class Constraint(NamedTuple):
  """A smooth map from all real arrays onto a set, and back.

  Learn the raw array, and use `of_raw(raw)` in the losses.

  Attributes:
    of_raw: the element of the set for any real array.
    to_raw: a raw array for an element of the set. It raises a `ValueError` for
      known numbers outside of it, or at its edge.
  """

  of_raw: Callable[[Array], Array]
  to_raw: Callable[[Array], Array]


def positive() -> Constraint:
  """Builds `x = exp(raw)`: steps of `raw` are relative changes of x."""

  def to_raw(x: Array) -> Array:
    check_number("x", x, above=0)
    return jnp.log(x)

  return Constraint(jnp.exp, to_raw)


def interval(low: float, high: float) -> Constraint:
  """Builds `x = low + (high - low) sigmoid(raw)`.

  Raises:
    ValueError: if `high` is not above `low`, or one is not finite.
  """
  check_number("low", low, above=-jnp.inf)
  check_number("high", high, above=low, below=jnp.inf)

  def to_raw(x: Array) -> Array:
    check_number("x", x, above=low, below=high)
    return jnp.log(x - low) - jnp.log(high - x)

  return Constraint(
    lambda raw: low + (high - low) * jax.nn.sigmoid(raw), to_raw
  )


def simplex() -> Constraint:
  """Builds `x = softmax(raw)` over the last axis: positive, with sum 1."""

  def to_raw(x: Array) -> Array:
    check_number("x", x, above=0)
    x = jnp.asarray(x)
    if not isinstance(x, jax.core.Tracer):
      total = np.asarray(x, np.float64).sum(-1)
      if not np.allclose(total, 1, atol=1e-3):
        raise ValueError(f"x: its sum is {total}, must be 1.")
    raw = jnp.log(x)
    return raw - raw.mean(-1, keepdims=True)

  return Constraint(lambda raw: jax.nn.softmax(raw, -1), to_raw)
