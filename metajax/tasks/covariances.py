"""Covariance functions of Gaussian processes."""

from typing import NamedTuple, Protocol

import jax.numpy as jnp

from metajax.types import Array


class Hyper(NamedTuple):
  """Hyper-parameters of a Gaussian process, scalars above 0.

  Attributes:
    length: the length scale, in the unit of the inputs.
    scale: the standard deviation of the function.
    noise: the standard deviation of the noise of a target.
    period: of a periodic function, in the unit of the inputs.
  """

  length: Array | float
  scale: Array | float
  noise: Array | float
  period: Array | float = 1.0


class Covariance(Protocol):
  """A covariance of the function's values at any two points."""

  def __call__(self, x: Array, z: Array, hyper: Hyper, /) -> Array:
    """Returns the covariances `[n, m]` of points `[n, c]` and `[m, c]`."""


def rbf(x: Array, z: Array, hyper: Hyper) -> Array:
  """Squared exponential: `scale^2 exp(-r^2 / (2 length^2))`, r = |x - z|.

  Args:
    x: `[n, c]`.
    z: `[m, c]`.
    hyper: the hyper-parameters.

  Returns:
    `[n, m]`.

  References:
    Rasmussen and Williams, `Gaussian Processes for Machine Learning
    <https://gaussianprocess.org/gpml/>`_, 2006, chapter 4.
  """
  square = jnp.square(_differences(x, z) / hyper.length).sum(-1)
  return jnp.square(hyper.scale) * jnp.exp(-square / 2)


def matern12(x: Array, z: Array, hyper: Hyper) -> Array:
  """Matern 1/2: `scale^2 exp(-r / length)`; arguments as in `rbf`."""
  r = _distances(x, z) / hyper.length
  return jnp.square(hyper.scale) * jnp.exp(-r)


def matern32(x: Array, z: Array, hyper: Hyper) -> Array:
  """Matern 3/2: `scale^2 (1 + s) exp(-s)`, `s = sqrt(3) r / length`."""
  s = jnp.sqrt(3.0) * _distances(x, z) / hyper.length
  return jnp.square(hyper.scale) * (1 + s) * jnp.exp(-s)


def matern52(x: Array, z: Array, hyper: Hyper) -> Array:
  """Matern 5/2: `scale^2 (1 + s + s^2 / 3) exp(-s)`, `s = sqrt(5) r / length`.

  Arguments as in `rbf`.
  """
  s = jnp.sqrt(5.0) * _distances(x, z) / hyper.length
  return jnp.square(hyper.scale) * (1 + s + jnp.square(s) / 3) * jnp.exp(-s)


def periodic(x: Array, z: Array, hyper: Hyper) -> Array:
  """Periodic in each input, with the same period; arguments as in `rbf`.

  ::

    scale^2 exp(-2 / length^2 sum_j sin^2(pi (x_j - z_j) / period))
  """
  sine = jnp.sin(jnp.pi * _differences(x, z) / hyper.period)
  square = jnp.square(sine / hyper.length).sum(-1)
  return jnp.square(hyper.scale) * jnp.exp(-2 * square)


def _differences(x: Array, z: Array) -> Array:
  return x[:, None] - z[None]


def _distances(x: Array, z: Array) -> Array:
  square = jnp.square(_differences(x, z)).sum(-1)
  # The root has no finite gradient at 0.
  near = square == 0
  return jnp.where(near, 0, jnp.sqrt(jnp.where(near, 1, square)))
