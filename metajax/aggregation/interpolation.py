"""The line between two models, and how high the loss rises along it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax import variables
from metajax.numerics import check_number, wide
from metajax.types import Array, Params


class LossBarrier(NamedTuple):
  """How high the loss rises between two models; see `loss_barrier`.

  Attributes:
    above_chord: the barrier of Entezari et al., from the line between the
      losses of the two.
    losses: `[num_points]`, along the line.
    above_mean: the error barrier height of Frankle et al., from the mean of the
      losses of the two; it is the loss barrier of Ainsworth et al., too.
  """

  above_chord: Array
  losses: Array
  above_mean: Array


def interpolate(one: Params, other: Params, weight: ArrayLike) -> Params:
  """Returns `(1 - weight) one + weight other`, in the dtypes of `one`."""

  def between(a: ArrayLike, b: ArrayLike) -> Array:
    mean = (1 - weight) * wide(a) + weight * wide(b)
    return variables.narrow(jnp.asarray(mean), jnp.result_type(a))

  return jax.tree.map(between, one, other)


def loss_barrier(
  loss_fn: Callable[[Params], Array],
  one: Params,
  other: Params,
  num_points: int = 25,
) -> LossBarrier:
  """Measures the loss along the line between two models.

  ::

    L(l) = L((1 - l) A + l B)
    above_chord = max_l  L(l) - ((1 - l) L(0) + l L(1))
    above_mean  = max_l  L(l) - (L(0) + L(1)) / 2

  The two are equal where both models have the same loss. Where they differ, a
  loss that falls steadily from one to the other has `above_chord` 0 or more,
  and `above_mean` at least half the difference.

  Args:
    loss_fn: `(params) -> scalar`.
    one: A.
    other: B.
    num_points: points on the line, its ends among them; at least 3.

  Returns:
    Both barriers, never negative, and the losses at the weights
    `jnp.linspace(0, 1, num_points)`. The points are computed one by one.

  Raises:
    ValueError: for fewer than 3 points.

  References:
    Frankle et al., `Linear Mode Connectivity and the Lottery Ticket Hypothesis
    <https://arxiv.org/abs/1912.05671>`_, 2020, section 2.
    Entezari et al., `The Role of Permutation Invariance in Linear Mode
    Connectivity of Neural Networks <https://arxiv.org/abs/2110.06296>`_, 2022,
    section 2.
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    definition 2.2.
  """
  check_number("num_points", num_points, at_least=3)
  grid = jnp.linspace(0.0, 1.0, num_points)
  losses = jax.lax.map(
    lambda w: wide(loss_fn(interpolate(one, other, w))), grid
  )
  chord = (1 - grid) * losses[0] + grid * losses[-1]
  above_chord = jnp.maximum(jnp.max(losses - chord), 0.0)
  above_mean = jnp.max(losses) - (losses[0] + losses[-1]) / 2
  return LossBarrier(above_chord, losses, above_mean)
