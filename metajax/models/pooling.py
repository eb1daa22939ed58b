"""Max-pooling whose derivatives of every order are selections."""

import jax.numpy as jnp
from jax import lax

from metajax.types import Array


def max_pool(
  inputs: Array,
  window: tuple[int, int] = (2, 2),
  lowest: Array | None = None,
) -> Array:
  """Takes the maximum of windows that do not overlap.

  ::

    y[n, i, j, c] = max_{a, b} x[n, h i + a, w j + b, c]

  Rows and columns that do not fill a window are left out. If the largest
  elements are equal, the first one by row and column gets the gradient, as with
  PyTorch and `flax.linen.max_pool`. (`jnp.max` divides it among them.) The
  maximum of a window with a NaN is NaN.

  The gradient of `lax.reduce_window` is XLA's select-and-scatter. On a CPU it
  takes longer than the forward pass of the network around it. Here the gradient
  and all further derivatives are selections between halves of an array.

  Args:
    inputs: `[n, height, width, channels]`.
    window: height and width of a window, in pixels.
    lowest: bool `[channels]`. Where True, the minimum is taken instead.

  Returns:
    `[n, height // h, width // w, channels]`.

  Raises:
    ValueError: if not even one window fits, or for inputs of another rank.
  """
  if inputs.ndim != 4:
    raise ValueError(f"inputs {inputs.shape}: max_pool takes NHWC.")
  n, height, width, channels = inputs.shape
  rows, columns = height // window[0], width // window[1]
  if not rows or not columns:
    raise ValueError(
      f"inputs {inputs.shape}: smaller than the window {window}; use larger "
      "images (--image_size) or fewer layers."
    )
  x = inputs[:, : rows * window[0], : columns * window[1]]
  # The transpose of a split is one concatenation. That of slices would be a sum
  # of padded arrays.
  x = x.reshape(n, rows, window[0], columns, window[1], channels)
  taps = [p for row in _parts(x, 2) for p in _parts(row, 3)]
  return first_largest(taps, lowest)


def _parts(x: Array, axis: int) -> list[Array]:
  """Splits an array along an axis and drops this axis."""
  ones = lax.split(x, (1,) * x.shape[axis], axis=axis)
  return [lax.squeeze(one, (axis,)) for one in ones]


def first_largest(taps: list[Array], lowest: Array | None = None) -> Array:
  """Returns the largest of several arrays, or the smallest where `lowest`.

  The choice is element by element. Of equal elements the first is chosen. A NaN
  counts as the largest and as the smallest.
  """
  if lowest is not None:
    # Comparisons of signed numbers are faster than a choice of comparisons.
    sign = jnp.where(lowest, -1, 1).astype(taps[0].dtype)
    return sign * first_largest([sign * tap for tap in taps])
  if len(taps) == 1:
    return taps[0]
  middle = len(taps) // 2
  a, b = first_largest(taps[:middle]), first_largest(taps[middle:])
  return jnp.where((a >= b) | jnp.isnan(a), a, b)
