"""Dropout of whole squares of a map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from metajax.numerics import check_counts, check_number
from metajax.types import Array


def drop_block(
  rng: jax.Array, inputs: Array, rate: float, block_size: int
) -> Array:
  """Sets squares of each channel to zero, and scales what is left.

  ::

    gamma = rate / b^2 * (h w) / ((h - b + 1) (w - b + 1))
    y = x * keep * size(keep) / sum(keep)

  A square of b x b pixels begins, with probability gamma, at each pixel where a
  whole one fits; keep is 0 in squares, and 1 elsewhere. About `rate` of the
  numbers are dropped, fewer where squares overlap. Their mean is that of the
  inputs, if those are constant. With b = 1 it is dropout.

  Args:
    rng: a key.
    inputs: x, `[n, height, width, channels]`.
    rate: share to be dropped, in [0, 1).
    block_size: b, in pixels; no more than height and width, which take its
      place in smaller maps.

  Raises:
    ValueError: if a number is out of its range.

  References:
    Ghiasi et al., `DropBlock: A regularization method for convolutional
    networks <https://arxiv.org/abs/1810.12890>`_, 2018, algorithm 1.
  """
  check_number("rate", rate, at_least=0, below=1)
  check_counts(block_size=block_size)
  n, height, width, channels = inputs.shape
  b = min(block_size, height, width)
  rows, columns = height - b + 1, width - b + 1
  gamma = rate / b**2 * (height * width) / (rows * columns)
  shape = (n, rows, columns, channels)
  corners = jax.random.bernoulli(rng, gamma, shape).astype(inputs.dtype)
  edges = [(0, 0), (b - 1, b - 1), (b - 1, b - 1), (0, 0)]
  squares = lax.reduce_window(
    corners, -jnp.inf, lax.max, (1, b, b, 1), (1, 1, 1, 1), edges
  )
  keep = lax.stop_gradient(squares) == 0
  # In float32: the numbers themselves may be infinite in half precision.
  scale = keep.size / jnp.maximum(keep.sum(), 1)
  return jnp.where(keep, inputs, 0) * scale.astype(inputs.dtype)


class DropBlock(nn.Module):
  """See `drop_block`; draws from the stream "dropout", where there is one.

  Attributes:
    rate: share to be dropped in training.
    block_size: in pixels.
  """

  rate: float
  block_size: int = 1

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    if not (train and self.rate and self.has_rng("dropout")):
      return x
    return drop_block(self.make_rng("dropout"), x, self.rate, self.block_size)
