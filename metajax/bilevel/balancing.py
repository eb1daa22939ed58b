"""Influence balancing: a loop whose truncated gradient has the wrong sign."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from metajax.bilevel.estimators import Begin, Window
from metajax.numerics import check_number
from metajax.types import Array, PRNGKey

_UNITS = 23
_START = 1.0


def influence_balancing(positive: int = 10) -> tuple[Begin, Window]:
  """Builds the problem, on which truncation is wrong at any short window.

  ::

    s_{t+1} = A s_t + outer v,    s_0 = (1, ..., 1)
    loss_t = (s_{t,1} - 1)^2 / 2
    A_ii = A_i,i+1 = 1/2,    v = (1, ..., 1, -1, ..., -1), 23 units

  The first unit feels units with v = +1 soon, and those with v = -1 late. The
  outer parameter is a scalar; it starts at 0.5 in the papers.

  Args:
    positive: the number of units with v = +1, from 1 to 22.

  Returns:
    `(begin, window)` of one step, see `estimators`. `of_steps` makes longer
    windows.

  Raises:
    ValueError: for a number of units out of range.

  References:
    Tallec and Ollivier, `Unbiasing Truncated Backpropagation Through Time
    <https://arxiv.org/abs/1705.08209>`_, 2017, section 5.1.
  """
  matrix, direction = map(jnp.asarray, _system(positive))

  def begin(rng: PRNGKey) -> Array:
    del rng
    return jnp.full(_UNITS, _START)

  def window(inner: Array, outer: Any, rng: PRNGKey) -> tuple[Array, Array]:
    del rng
    inner = inner @ matrix.T.astype(inner.dtype) + outer * direction
    return inner, jnp.square(inner[0] - 1) / 2

  return begin, window


def exact_gradient(outer: float, num_steps: int, positive: int = 10) -> float:
  """Returns the derivative of the mean loss of a loop, in float64.

  Args:
    outer: the outer parameter.
    num_steps: the number of steps in the loop.
    positive: see `influence_balancing`.
  """
  matrix, direction = _system(positive)
  state, change, total = np.full(_UNITS, _START), np.zeros(_UNITS), 0.0
  for _ in range(num_steps):
    state = matrix @ state + outer * direction
    change = matrix @ change + direction
    total += (state[0] - 1) * change[0]
  return total / num_steps


def _system(positive: int) -> tuple[np.ndarray, np.ndarray]:
  check_number("positive", positive, at_least=1, at_most=_UNITS - 1)
  matrix = (np.eye(_UNITS) + np.eye(_UNITS, k=1)) / 2
  direction = np.where(np.arange(_UNITS) < positive, 1.0, -1.0)
  return matrix, direction
