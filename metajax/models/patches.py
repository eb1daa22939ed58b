"""A 2-D convolution as patches times a matrix, for per-task kernels."""

import functools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from metajax.models import winograd
from metajax.models.blocks import in_blocks, is_spread
from metajax.types import Array

MATRICES = ((1,), (0,)), ((), ())
NHWC = ("NHWC", "HWIO", "NHWC")
FEW_CHANNELS = 8  # With fewer channels, each image has a product of its own.


def patch_conv(
  lhs: Array,
  rhs: Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: (
    lax.ConvDimensionNumbers | tuple[str, str, str] | None
  ) = NHWC,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: lax.PrecisionLike = None,
  preferred_element_type: jnp.dtype | None = None,
  *,
  blocks: bool = False,
) -> Array:
  """`lax.conv_general_dilated` as a matrix product over explicit patches.

  The input x is padded by zeros::

    y[n, i, j, o] = sum_{a, b, c} x[n, s_0 i + a, s_1 j + b, c] w[a, b, c, o]

  Under `vmap` over kernels, `lax.conv_general_dilated` becomes a grouped
  convolution, which is very slow on CPU. `patch_conv` becomes a batched matrix
  product. Under `vmap` over inputs only, it stays one matrix product. It can be
  differentiated to any order, forwards and backwards. Pass it to
  `flax.linen.Conv` as `conv_general_dilated_cls=lambda: patch_conv`. The
  parameters of the layer stay the same.

  Args:
    lhs: inputs `[n, height, width, channels]`.
    rhs: kernel `[kernel_height, kernel_width, channels, filters]`.
    window_strides: strides of height and width.
    padding: "SAME", "VALID" or `(low, high)` for height and width.
    lhs_dilation: must be 1 (or None).
    rhs_dilation: must be 1 (or None).
    dimension_numbers: must be equivalent to NHWC, HWIO, NHWC.
    feature_group_count: must be 1.
    batch_group_count: must be 1.
    precision: the precision of the matrix product.
    preferred_element_type: the dtype of the result.
    blocks: if True, use the fastest way on CPUs, whose cores wait for memory.
      Images are computed in blocks, see `blocks.in_blocks`. Kernels of three
      columns use `winograd.filtered`, if they have stride 1, 8 channels or more
      and 32 bits or more. A MAML task of conv4-64 with max-pooling (32 x 32
      colour images, 75 queries, 5 inner steps) took 230 ms instead of 334 on
      one core. A task of 84 x 84 images and 32 filters took 0.80 s instead of
      1.1 to 1.3.

  Returns:
    `[n, out_height, out_width, filters]`.

  Raises:
    ValueError: if the arguments are not as above.
  """
  _check(lhs, rhs, dimension_numbers)
  for name, value in (
    ("lhs_dilation", lhs_dilation),
    ("rhs_dilation", rhs_dilation),
    ("feature_group_count", (feature_group_count,)),
    ("batch_group_count", (batch_group_count,)),
  ):
    if any(v != 1 for v in value or ()):
      raise ValueError(
        f"{name}={value}: patch_conv takes 1 only; use "
        "lax.conv_general_dilated."
      )
  kernel_shape = (rhs.shape[0], rhs.shape[1])
  strides = (window_strides[0], window_strides[1])
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      lhs.shape[1:3], kernel_shape, strides, padding
    )
  product = functools.partial(
    lax.dot_general,
    precision=precision,
    preferred_element_type=preferred_element_type,
  )
  rows, columns, channels, _ = rhs.shape
  by_patches = functools.partial(
    _patches_times,
    kernel=rhs,
    strides=strides,
    padding=padding,
    product=product,
  )
  if is_spread(lhs) or not blocks:
    return by_patches(lhs)
  image_bytes = math.prod(lhs.shape[1:3]) * channels * lhs.dtype.itemsize
  if winograd.takes(lhs, rhs, strides, padding) and channels >= FEW_CHANNELS:
    by_filters = functools.partial(
      winograd.filtered,
      kernels=winograd.filters(rhs),
      padding=padding,
      product=functools.partial(product, dimension_numbers=MATRICES),
    )
    return in_blocks(by_filters, lhs, 5 * rows * image_bytes // 2)
  patch_bytes = rows * columns * image_bytes // math.prod(strides)
  return in_blocks(by_patches, lhs, patch_bytes)


def _patches_times(
  inputs: Array,
  kernel: Array,
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
  product: Callable[..., Array],
) -> Array:
  """Convolves by a product of all patches with the kernel as a matrix."""
  rows, columns = kernel.shape[:2]
  patches = extract_patches(inputs, (rows, columns), strides, padding)
  matrix = kernel.reshape(-1, kernel.shape[-1])
  if inputs.shape[3] >= FEW_CHANNELS:
    return product(patches, matrix, (((3,), (0,)), ((), ())))
  # The kernel's gradient contracts the positions of all images. XLA transposes
  # the whole cotangent for it, in strides that miss the cache. With one product
  # per image, it transposes tiles that fit into the cache. This helps in a
  # first layer, where the products are small: a MAML step of conv4-64 (32
  # tasks, 75 queries, 2 cores) took 0.33 s instead of 0.42 s. With 64 channels,
  # a product per image made the kernel's gradient six times slower.
  n, height, width, size = patches.shape
  out = product(
    patches.reshape(n, height * width, size),
    jnp.broadcast_to(matrix, (n, *matrix.shape)),
    (((2,), (1,)), ((0,), (0,))),
  )
  return out.reshape(n, height, width, matrix.shape[-1])


def extract_patches(
  inputs: Array,
  kernel_shape: tuple[int, int],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> Array:
  """Returns the windows of `inputs` `[n, height, width, channels]`.

  Args:
    inputs: `[n, height, width, channels]`.
    kernel_shape: height and width of a window, in pixels.
    strides: pixels from one window to the next, down and to the right.
    padding: zeros before and after, for height and for width.

  Returns:
    `[n, out_height, out_width, kernel_height * kernel_width * channels]`, with
    the last axis in the order of a flattened HWI kernel.

  Raises:
    ValueError: if not even one window fits.
  """
  zero = jnp.zeros((), inputs.dtype)
  edges = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
  x = lax.pad(inputs, zero, edges)
  # The start of the last window.
  ends = [
    (size - k) // stride * stride
    for size, k, stride in zip(x.shape[1:3], kernel_shape, strides, strict=True)
  ]
  if min(ends) < 0:
    raise ValueError(
      f"inputs {inputs.shape} with padding={padding}: smaller than the kernel "
      f"{kernel_shape}; use more padding or fewer layers."
    )
  # One strided slice per tap, and one concatenation. These alternatives were
  # slower in a MAML step: columns before rows (by 20%), slices of a
  # space-to-depth view (8%), a product per tap instead of the concatenation
  # (30%), a gather.
  taps = [
    x[:, a : a + ends[0] + 1 : strides[0], b : b + ends[1] + 1 : strides[1]]
    for a in range(kernel_shape[0])
    for b in range(kernel_shape[1])
  ]
  return jnp.concatenate(taps, axis=-1)


def _check(
  lhs: Array,
  rhs: Array,
  dimension_numbers: lax.ConvDimensionNumbers | tuple[str, str, str] | None,
) -> None:
  if lhs.ndim != 4 or rhs.ndim != 4:
    raise ValueError(
      f"lhs {lhs.shape} and rhs {rhs.shape}: patch_conv takes NHWC and HWIO."
    )
  given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  if given != lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC):
    raise ValueError(
      f"dimension_numbers={dimension_numbers}: patch_conv takes {NHWC} only."
    )
  if lhs.shape[3] != rhs.shape[2]:
    raise ValueError(
      f"lhs {lhs.shape} and rhs {rhs.shape}: the channels differ."
    )
