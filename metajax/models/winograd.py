"""Convolution with kernels of three columns in half the multiplications."""

import functools
import operator
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax.types import Array

TILE, COLUMNS = 4, 3  # Outputs of a tile, and columns of a kernel.

# The interpolation points are 0, +-sqrt(1/2), +-sqrt(2) and infinity. With
# them, the rounding error is that of a direct convolution. With 0, +-1, +-2 it
# is twice as large (75 normal images of 16 x 16 with 64 channels).
_R = 0.5**0.5
_OF_INPUT = np.array(
  [
    [1, 0, -2.5, 0, 1, 0],
    [0, -2 * _R, -2, _R, 1, 0],
    [0, 2 * _R, -2, -_R, 1, 0],
    [0, -_R, -0.5, 2 * _R, 1, 0],
    [0, _R, -0.5, -2 * _R, 1, 0],
    [0, 1, 0, -2.5, 0, 1],
  ]
)
_OF_KERNEL = np.array(
  [
    [1, 0, 0],
    [-2 / 3, -2 / 3 * _R, -1 / 3],
    [-2 / 3, 2 / 3 * _R, -1 / 3],
    [1 / 6, 1 / 3 * _R, 1 / 3],
    [1 / 6, -1 / 3 * _R, 1 / 3],
    [0, 0, 1],
  ]
)
_OF_PRODUCTS = np.array(
  [
    [1, 1, 1, 1, 1, 0],
    [0, _R, -_R, 2 * _R, -2 * _R, 0],
    [0, 0.5, 0.5, 2, 2, 0],
    [0, 0.5 * _R, -0.5 * _R, 4 * _R, -4 * _R, 1],
  ]
)


def takes(
  inputs: Array,
  kernel: Array,
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> bool:
  """Returns whether `filtered` can compute a convolution accurately."""
  room = [n + sum(p) for n, p in zip(inputs.shape[1:3], padding, strict=True)]
  return (
    inputs.dtype in (jnp.float32, jnp.float64)
    and inputs.dtype == kernel.dtype
    and (strides, kernel.shape[1]) == ((1, 1), COLUMNS)
    and room[0] >= kernel.shape[0]
    and room[1] >= COLUMNS
  )


def filtered(
  inputs: Array,
  kernels: Sequence[Array],
  padding: Sequence[tuple[int, int]],
  product: Callable[[Array, Array], Array],
) -> Array:
  """Convolves with stride 1 and a kernel of three columns.

  This is Winograd's F(4, 3). Four neighbouring outputs y of a row are linear in
  six inputs d and in the three columns g of the kernel. They need six products
  instead of twelve::

    y = A' [(G g) * (B' d)]

  A, B and G are constant. Each element of the elementwise * is a product of
  matrices, over channels and the kernel's rows.

  Args:
    inputs: `[n, height, width, channels]`.
    kernels: G g, from `filters`.
    padding: zeros before and after, for height and for width.
    product: the product of two matrices.

  Returns:
    `[n, out_height, out_width, filters]`.

  References:
    Lavin and Gray, `Fast Algorithms for Convolutional Neural Networks
    <https://arxiv.org/abs/1509.09308>`_, 2016, section 4.1.
  """
  n, height, width, channels = inputs.shape
  rows = kernels[0].shape[0] // channels
  out_height = height + sum(padding[0]) - rows + 1
  out_width = width + sum(padding[1]) - COLUMNS + 1
  tiles = -(-out_width // TILE)
  right = (tiles + 1) * TILE - width - padding[1][0]
  edges = [(0, 0, 0), (*padding[0], 0), (padding[1][0], right, 0), (0, 0, 0)]
  x = lax.pad(inputs, jnp.zeros((), inputs.dtype), edges)
  # The kernel's rows are side by side before the six combinations. To join them
  # afterwards would be six concatenations, which were a quarter of the
  # compilation of a MAML step.
  x = jnp.concatenate([x[:, a : a + out_height] for a in range(rows)], axis=-1)
  x = x.reshape(n, out_height, tiles + 1, TILE, rows * channels)
  columns = [x.squeeze(3) for x in lax.split(x, (1,) * TILE, axis=3)]
  # The six columns of each tile. The last two are the first of the next tile.
  columns = [
    lax.slice_in_dim(columns[i % TILE], i // TILE, i // TILE + tiles, axis=2)
    for i in range(TILE + COLUMNS - 1)
  ]
  products = []
  for v, kernel in zip(_combined(_OF_INPUT, columns), kernels, strict=True):
    y = product(v.reshape(-1, rows * channels), kernel)
    products.append(y.reshape(n, out_height, tiles, 1, kernel.shape[1]))
  y = jnp.concatenate(_combined(_OF_PRODUCTS, products), axis=3)
  y = y.reshape(n, out_height, TILE * tiles, y.shape[-1])
  return y[:, :, :out_width]


def filters(kernel: Array) -> list[Array]:
  """Returns G g: six matrices `[rows * channels, filters]` of a HWIO kernel."""
  columns = [x.squeeze(1) for x in lax.split(kernel, (1,) * COLUMNS, axis=1)]
  return [
    g.reshape(-1, kernel.shape[-1]) for g in _combined(_OF_KERNEL, columns)
  ]


def _combined(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
  """Multiplies a matrix by a vector of arrays."""
  return [
    functools.reduce(
      operator.add,
      [float(m) * x for m, x in zip(row, arrays, strict=True) if m],
    )
    for row in matrix
  ]
