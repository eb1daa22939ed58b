"""Regression of sawtooth waves of random frequency and phase."""

import jax
import jax.numpy as jnp

from metajax.numerics import check_range
from metajax.tasks.form import Number, checked_bounds
from metajax.tasks.points import divide, division
from metajax.types import Array, Episode, PRNGKey, TaskFamily


def sawtooth(
  shots: Number = (3, 100),
  query_shots: Number = (3, 100),
  *,
  max_points: int | None = None,
  input_range: tuple[float, float] = (-2.0, 2.0),
  frequency_range: tuple[float, float] = (3.0, 5.0),
  shift_range: tuple[float, float] = (-5.0, 5.0),
  terms: Number = (10, 20),
) -> TaskFamily:
  """Builds tasks of regressing the first terms of a sawtooth wave's series.

  ::

    y = 1/2 - 1/pi sum_{k=1}^K (-1)^k sin(2 pi k f (x + s)) / k,
    f ~ U[3, 5],  s ~ U[-5, 5],  K ~ U{10, ..., 20},  x ~ U[-2, 2]

  There is no noise. The exact posterior is not known in closed form, so these
  tasks have none. The defaults are those of Gordon et al.

  Args:
    shots: number of support points, or the least and most.
    query_shots: number of query points, or the least and most.
    max_points: most points of a task, both together.
    input_range: bounds of x.
    frequency_range: bounds of f, in periods for each unit of x.
    shift_range: bounds of s.
    terms: K, or the least and most.

  Returns:
    A task family with inputs and targets `[n, 1]`.

  Raises:
    ValueError: for an impossible number or an empty range.

  References:
    Gordon et al., `Convolutional Conditional Neural Processes
    <https://arxiv.org/abs/1910.13556>`_, 2020, section 5.1.
  """
  points = division(shots, query_shots, max_points)
  for name, bounds in (
    ("input_range", input_range),
    ("frequency_range", frequency_range),
    ("shift_range", shift_range),
  ):
    check_range(name, bounds)
  least, most = checked_bounds("terms", terms, 1)

  def sample(rng: PRNGKey) -> Episode:
    keys = jax.random.split(rng, 5)
    x = _uniform(keys[0], (points.num_points, 1), input_range)
    frequency = _uniform(keys[1], (), frequency_range)
    shift = _uniform(keys[2], (), shift_range)
    count = jax.random.randint(keys[3], (), least, most + 1)
    # Whole periods are left out, so that the sine is accurate.
    phase = jnp.mod(frequency * x + jnp.mod(frequency * shift, 1), 1)
    k = jnp.arange(1, most + 1)
    sines = jnp.sin(2 * jnp.pi * k * phase) / k * (-1.0) ** k
    y = 0.5 - jnp.where(k <= count, sines, 0).sum(-1, keepdims=True) / jnp.pi
    return divide(keys[4], x, y, points)

  return sample


def _uniform(
  rng: PRNGKey, shape: tuple[int, ...], bounds: tuple[float, float]
) -> Array:
  return jax.random.uniform(rng, shape, minval=bounds[0], maxval=bounds[1])
