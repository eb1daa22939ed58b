"""Random arrays of several shapes by one call.

A table needs about a hundred small arrays. One call for each would make the
programs ten times as long to compile.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Array, PRNGKey

Shape = tuple[int, ...]


def uniforms(rng: PRNGKey, *shapes: Shape) -> list[Array]:
  """Draws arrays of U(0, 1)."""
  return _divided(jax.random.uniform(rng, (_total(shapes),)), shapes)


def normals(rng: PRNGKey, *shapes: Shape) -> list[Array]:
  """Draws arrays of N(0, 1)."""
  return _divided(jax.random.normal(rng, (_total(shapes),)), shapes)


def between(u: Array, low: float, high: float) -> Array:
  """Returns U(low, high) of U(0, 1)."""
  return low + (high - low) * u


def whole(u: Array, low: Array | int, high: Array | int) -> Array:
  """Returns integers from `low` to `high`, both included, of U(0, 1)."""
  count = high - low + 1
  return low + jnp.minimum((u * count).astype(jnp.int32), count - 1)


def _total(shapes: tuple[Shape, ...]) -> int:
  return sum(math.prod(shape) for shape in shapes)


def _divided(numbers: Array, shapes: tuple[Shape, ...]) -> list[Array]:
  ends = np.cumsum([math.prod(shape) for shape in shapes])
  parts = jnp.split(numbers, ends[:-1].tolist())
  return [x.reshape(shape) for x, shape in zip(parts, shapes, strict=True)]
