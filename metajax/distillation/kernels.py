"""Kernels of infinitely wide networks, and kernel ridge regression."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.numerics import check_counts, check_number, root, wide
from metajax.types import Array

Kernel = Callable[[Array, Array], Array]


def linear_kernel(x: Array, y: Array) -> Array:
  """Returns `<x, y> / d`, `[n, m]`, for inputs `[n, ...]` and `[m, ...]`."""
  x, y = map(_rows, (x, y))
  # The tangent kernel computes angles from this, which needs all digits.
  return jnp.matmul(x, y.T, precision="highest") / x.shape[-1]


def relu_tangent_kernel(num_layers: int = 2) -> Kernel:
  """Builds the neural tangent kernel of an infinitely wide ReLU network.

  ::

    S_0 = T_0 = <x, y> / d
    S_l = sqrt(S(x, x) S(y, y)) (sin a + (pi - a) cos a) / pi,
    T_l = S_l + T_{l-1} (pi - a) / pi,     a = angle by S_{l-1}

  The network has no biases. Its weights have variance 1 / fan-in in the first
  layer and 2 / fan-in in the others.

  Args:
    num_layers: number of hidden layers.

  Returns:
    A kernel of inputs `[n, ...]` and `[m, ...]`, which it flattens.

  Raises:
    ValueError: for a negative number of layers.

  References:
    Jacot et al., `Neural Tangent Kernel <https://arxiv.org/abs/1806.07572>`_,
    2018, section 4.
    Cho and Saul, `Kernel Methods for Deep Learning
    <https://papers.nips.cc/paper/3628>`_, 2009, section 2: the closed form of
    the expectations.
  """
  check_counts(num_layers=num_layers, at_least=0)

  def kernel(x: Array, y: Array) -> Array:
    x, y = map(_rows, (x, y))
    # <x, x> / d is the same in all layers.
    scale = _size(x)[:, None] * _size(y)
    unit = jnp.where(scale > 0, scale, 1)
    covariance = tangent = linear_kernel(x, y)
    # The derivative of arccos is infinite at a = 0. The angle of an input with
    # itself is constant, so the gradient 0 of the clipped value is right.
    limit = 1 - 2 * jnp.finfo(scale.dtype).eps
    for _ in range(num_layers):
      cosine = covariance / unit
      angle = jnp.arccos(jnp.clip(cosine, -limit, limit))
      angle = jnp.where(cosine > limit, 0.0, angle)
      cosine = jnp.clip(cosine, -1, 1)
      rest = (jnp.pi - angle) / jnp.pi
      covariance = scale * (jnp.sin(angle) / jnp.pi + rest * cosine)
      tangent = covariance + tangent * rest
    return tangent

  return kernel


def kernel_ridge(
  kernel: Kernel, inputs: Array, targets: Array, ridge: ArrayLike = 1e-3
) -> Callable[[Array], Array]:
  """Fits kernel ridge regression and returns its predictor.

  ::

    x -> K(x, X) (K(X, X) + ridge mean(diag K(X, X)) I)^-1 Y

  Args:
    kernel: `(inputs [n, ...], inputs [m, ...]) -> [n, m]`.
    inputs: X, `[n, ...]`.
    targets: Y, `[n, outputs]`.
    ridge: strength of the ridge, in units of the kernel's mean diagonal;
      positive.

  Raises:
    ValueError: if `ridge` is not positive, or if there are more or fewer
      targets than inputs. A traced value is not checked.
  """
  check_number("ridge", ridge, above=0)
  if len(targets) != len(inputs):
    raise ValueError(f"targets: {len(targets)} given for {len(inputs)} inputs.")
  gram = kernel(inputs, inputs)
  # Inputs of zeros have a kernel of 0, and are predicted as 0.
  jitter = ridge * jnp.maximum(jnp.trace(gram) / gram.shape[0], 1e-20)
  factor = jax.scipy.linalg.cho_factor(
    gram + jitter * jnp.eye(gram.shape[0], dtype=gram.dtype)
  )
  weights = jax.scipy.linalg.cho_solve(factor, targets)
  return lambda x: jnp.matmul(kernel(x, inputs), weights, precision="highest")


def _rows(x: Array) -> Array:
  """Flattens inputs `[n, ...]`. Products of integers would wrap around."""
  return wide(x).reshape(len(x), -1)


def _size(x: Array) -> Array:
  """Returns root mean squares of rows, whose gradient at 0 is 0."""
  return root(jnp.square(x).mean(-1))
