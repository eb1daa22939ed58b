"""Regression of sine waves whose amplitude and phase differ between tasks."""

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts, check_range
from metajax.types import Array, Batch, Episode, PRNGKey, TaskFamily


def sinusoid(
  shots: int = 10,
  query_shots: int = 10,
  *,
  amplitude_range: tuple[float, float] = (0.1, 5.0),
  phase_range: tuple[float, float] = (0.0, jnp.pi),
  input_range: tuple[float, float] = (-5.0, 5.0),
) -> TaskFamily:
  """Builds tasks of regressing a sine wave from a few points.

  A task is a curve. Support and query are points of the curve, drawn
  independently::

    y = A sin(x - phase),  A ~ U[0.1, 5],  phase ~ U[0, pi],  x ~ U[-5, 5]

  Args:
    shots: number of support points.
    query_shots: number of query points.
    amplitude_range: bounds of A.
    phase_range: bounds of the phase, in radians.
    input_range: bounds of x, in radians.

  Returns:
    A task family. Inputs and targets are float arrays `[shots, 1]` in the
    support and `[query_shots, 1]` in the query.

  Raises:
    ValueError: for fewer than one point or an empty range.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017, section 5.1.
  """
  check_counts(shots=shots, query_shots=query_shots)
  for name, bounds in (
    ("amplitude_range", amplitude_range),
    ("phase_range", phase_range),
    ("input_range", input_range),
  ):
    check_range(name, bounds)

  def sample(rng: PRNGKey) -> Episode:
    amplitude_key, phase_key, input_key = jax.random.split(rng, 3)
    amplitude = _uniform(amplitude_key, (), amplitude_range)
    phase = _uniform(phase_key, (), phase_range)
    x = _uniform(input_key, (shots + query_shots, 1), input_range)
    y = amplitude * jnp.sin(x - phase)
    return Episode(Batch(x[:shots], y[:shots]), Batch(x[shots:], y[shots:]))

  return sample


def _uniform(
  rng: PRNGKey, shape: tuple[int, ...], bounds: tuple[float, float]
) -> Array:
  return jax.random.uniform(rng, shape, minval=bounds[0], maxval=bounds[1])
