"""The line between two models, and how high the loss rises along it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.types import Array, Params


def interpolate(one: Params, other: Params, weight: ArrayLike) -> Params:
  """Returns `(1 - weight) one + weight other`."""
  return jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, one, other)


def loss_barrier(
  loss_fn: Callable[[Params], Array],
  one: Params,
  other: Params,
  num_points: int = 25,
) -> tuple[Array, Array]:
  """Measures the loss along the line between two models.

  ::

    B = max_l  L((1 - l) A + l B) - ((1 - l) L(A) + l L(B))

  Args:
    loss_fn: `(params) -> scalar`.
    one: A.
    other: B.
    num_points: points on the line, its ends among them; at least 3.

  Returns:
    The barrier, never negative, and the losses `[num_points]` at the weights
    `jnp.linspace(0, 1, num_points)`. The points are computed one by one.

  Raises:
    ValueError: for fewer than 3 points.

  References:
    Frankle et al., `Linear Mode Connectivity and the Lottery Ticket Hypothesis
    <https://arxiv.org/abs/1912.05671>`_, 2020, section 2.
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    definition 2.2.
  """
  if num_points < 3:
    raise ValueError(f"num_points={num_points}: must be 3 or more.")
  grid = jnp.linspace(0.0, 1.0, num_points)
  losses = jax.lax.map(lambda w: loss_fn(interpolate(one, other, w)), grid)
  chord = (1 - grid) * losses[0] + grid * losses[-1]
  return jnp.maximum(jnp.max(losses - chord), 0.0), losses
