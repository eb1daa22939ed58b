"""Interpolates two models and measures the loss barrier between them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax import variables
from metajax.aggregation.stacks import check_alike
from metajax.numerics import check_counts, check_number, check_scalar, wide
from metajax.types import Array, Params


class LossBarrier(NamedTuple):
  """The loss barrier between two models, see `loss_barrier`.

  Attributes:
    above_chord: the barrier of Entezari et al. It is measured from the linear
      interpolation of the two models' losses.
    losses: `[num_points]`, the losses along the line.
    above_mean: the error barrier height of Frankle et al., and the loss barrier
      of Ainsworth et al. It is measured from the mean of the two models'
      losses.
  """

  above_chord: Array
  losses: Array
  above_mean: Array


def interpolate(one: Params, other: Params, weight: ArrayLike) -> Params:
  """Returns `(1 - weight) one + weight other`, in the dtypes of `one`.

  A weight below 0 or above 1 extrapolates. `State` nodes are not extrapolated,
  since a running variance could become negative. For them, the weight is
  clipped to [0, 1]. Random keys are those of `one`.

  Raises:
    ValueError: if the models differ in a shape, or if `weight` is not one
      number.
  """
  if jnp.shape(weight) != ():
    raise ValueError(
      f"weight of shape {jnp.shape(weight)}: must be one number; use jax.vmap "
      "for several."
    )
  check_number("weight", weight)
  check_alike("other", other, one)

  def between(share: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
    if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
      return jnp.asarray(a)
    mean = (1 - share) * wide(a) + share * wide(b)
    return variables.narrow(jnp.asarray(mean), jnp.result_type(a))

  whole = jax.tree.map(functools.partial(between, weight), one, other)
  states = jax.tree.map(
    functools.partial(between, jnp.clip(weight, 0, 1)),
    *map(variables.states, (one, other)),
  )
  return variables.combine(states, whole)


def loss_barrier(
  loss_fn: Callable[[Params], Array],
  one: Params,
  other: Params,
  num_points: int = 25,
) -> LossBarrier:
  """Measures the loss along the line between two models, and its barriers.

  ::

    L(l) = L((1 - l) A + l B)
    above_chord = max_l  L(l) - ((1 - l) L(0) + l L(1))
    above_mean  = max_l  L(l) - (L(0) + L(1)) / 2

  The two barriers are equal if both models have the same loss. If their losses
  differ, `above_mean` is at least half the difference, although the loss may
  fall steadily from one model to the other. `above_chord` is 0 if it falls
  linearly.

  Args:
    loss_fn: `(params) -> scalar`.
    one: A.
    other: B.
    num_points: points on the line, including its ends; at least 3.

  Returns:
    Both barriers, which are never negative, and the losses at the weights
    `jnp.linspace(0, 1, num_points)`. The losses are computed one by one.

  Raises:
    ValueError: for fewer than 3 points, or a loss that is no scalar.

  References:
    Frankle et al., `Linear Mode Connectivity and the Lottery Ticket Hypothesis
    <https://arxiv.org/abs/1912.05671>`_, 2020, section 2.
    Entezari et al., `The Role of Permutation Invariance in Linear Mode
    Connectivity of Neural Networks <https://arxiv.org/abs/2110.06296>`_, 2022,
    section 2.
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    definition 2.2.
  """
  check_counts(num_points=num_points, at_least=3)
  grid = jnp.linspace(0.0, 1.0, num_points)

  def loss_at(weight: Array) -> Array:
    loss = loss_fn(interpolate(one, other, weight))
    check_scalar("loss_fn", loss)
    return wide(loss)

  losses = jax.lax.map(loss_at, grid)
  chord = (1 - grid) * losses[0] + grid * losses[-1]
  above_chord = jnp.maximum(jnp.max(losses - chord), 0.0)
  above_mean = jnp.max(losses) - (losses[0] + losses[-1]) / 2
  return LossBarrier(above_chord, losses, above_mean)
