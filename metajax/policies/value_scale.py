"""The unit in which a network predicts values: that of the returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.training.mesh import TASKS
from metajax.types import Array

# How fast the statistics follow the returns of a step.
RATE = 0.05
# The least standard deviation, for returns that are all the same.
LEAST = 1e-6


class ValueScale(NamedTuple):
  """Mean and variance of the returns so far, which are the unit of values.

  A network whose output is v predicts the value `mean + deviation v`. So the
  error of values weighs the same beside the policy's loss, whatever rewards,
  discount and length of a trial are (van Hasselt et al., `Learning
  values across many orders of magnitude <https://arxiv.org/abs/1602.07714>`_,
  2016, without the correction of the last layer).

  Attributes:
    mean: a moving average of the mean of a step's returns.
    variance: that of their variance about `mean`.
  """

  mean: Array
  variance: Array


def first_scale() -> ValueScale:
  """Returns the scale before any returns: all values are 0."""
  return ValueScale(jnp.float32(0.0), jnp.float32(0.0))


def seen(scale: ValueScale, returns: Array, step: Array) -> ValueScale:
  """Moves the scale to the returns of a step, inside `shard_map`.

  The rate is `1 / (step + 1)`, and RATE at least.
  """
  rate = jnp.maximum(1 / (step + 1), RATE)
  found = jax.lax.pmean(returns.mean(), TASKS)
  mean = scale.mean + rate * (found - scale.mean)
  spread = jax.lax.pmean(jnp.square(returns - mean).mean(), TASKS)
  new = ValueScale(mean, scale.variance + rate * (spread - scale.variance))
  # The rate is float64 with JAX's 64 bits. A state keeps its dtypes.
  return jax.tree.map(lambda x, like: x.astype(like.dtype), new, scale)


def to_values(scale: ValueScale, outputs: Array) -> Array:
  """Returns the values that the outputs of a network stand for."""
  return scale.mean + _deviation(scale) * outputs


def to_outputs(scale: ValueScale, values: Array) -> Array:
  """Returns the outputs of a network that stand for values."""
  return (values - scale.mean) / _deviation(scale)


def _deviation(scale: ValueScale) -> Array:
  return jnp.maximum(jnp.sqrt(scale.variance), LEAST)
