"""ResNet-12, the residual network of few-shot image classification."""

from collections.abc import Sequence

import flax.linen as nn

from metajax.models.conv import ConvLowering, check_layers, convolution
from metajax.models.dropout import DropBlock
from metajax.models.inputs import check_images
from metajax.models.normalization import BY_BATCH, normalize
from metajax.models.pooling import max_pool
from metajax.numerics import check_counts, check_number
from metajax.types import Array

# MetaOptNet's and the one of half of its parameters.
WIDTHS = (64, 160, 320, 640)
NARROW_WIDTHS = (64, 128, 256, 512)
SLOPE = 0.1  # Of the leaky ReLU, below zero.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Residual(nn.Module):
  """Three convolutions beside one of a pixel, then pooling; see `resnet12`."""

  filters: int
  normalization: str
  conv_lowering: ConvLowering

  @nn.compact
  def __call__(self, x: Array, mask: Array | None, train: bool) -> Array:
    def convolved(x: Array, kernel_size: int) -> Array:
      x = nn.Conv(
        self.filters,
        (kernel_size, kernel_size),
        padding="SAME",
        use_bias=self.normalization not in BY_BATCH,
        kernel_init=KERNEL_INIT,
        conv_general_dilated_cls=lambda: convolution(self.conv_lowering),
      )(x)
      return normalize(self.normalization)(x, mask, train)

    y = x
    for _ in range(2):
      y = nn.leaky_relu(convolved(y, 3), SLOPE)
    y = convolved(y, 3) + convolved(x, 1)
    # After the pooling, of a quarter of the numbers.
    return nn.leaky_relu(max_pool(y), SLOPE)


class ResNet(nn.Module):
  """See `resnet12`."""

  num_outputs: int | None
  filters: tuple[int, ...]
  normalization: str
  pooled: bool
  drop_rate: float
  block_size: int
  conv_lowering: ConvLowering

  @nn.compact
  def __call__(
    self, inputs: Array, mask: Array | None = None, train: bool = False
  ) -> Array:
    check_images(inputs)
    x = inputs
    for i, filters in enumerate(self.filters):
      block = Residual(
        filters, self.normalization, self.conv_lowering, name=f"Block_{i}"
      )
      x = block(x, mask, train)
      in_squares = i >= len(self.filters) - 2
      drop = DropBlock(self.drop_rate, self.block_size if in_squares else 1)
      x = drop(x, train)
    x = x.mean((1, 2)) if self.pooled else x.reshape(x.shape[0], -1)
    return x if self.num_outputs is None else nn.Dense(self.num_outputs)(x)


def resnet12(
  num_outputs: int | None,
  *,
  filters: Sequence[int] = WIDTHS,
  normalization: str = "running",
  pooled: bool = True,
  drop_rate: float = 0.1,
  block_size: int = 5,
  conv_lowering: ConvLowering = "auto",
) -> nn.Module:
  """Four residual blocks of three 3x3 convolutions; a linear head.

  ::

    block(x) = lrelu(max_pool(c(lrelu(c(lrelu(c(x))))) + s(x)))

  c is a 3x3 convolution with a normalisation, s a 1x1 convolution with one,
  lrelu has the slope 0.1 below zero, and the pooling is 2x2. In training,
  dropout follows the first blocks and DropBlock the last two. Its rate is
  constant. (MetaOptNet's code lets it grow from 0 in the first 40,000 passes.)

  Args:
    num_outputs: width of the head; None leaves it out (an embedding).
    filters: channels of the blocks. `WIDTHS` has 12.4 million parameters
      without a head, `NARROW_WIDTHS` 8.0 million.
    normalization: see `models.normalization.normalize`.
    pooled: whether the features are the mean over positions, as Tian et al.
      have them, or all positions, as MetaOptNet.
    drop_rate: share of numbers to be dropped, in [0, 1).
    block_size: side of DropBlock's squares in pixels. MetaOptNet's code has 5,
      for images of 84 x 84. Smaller images need smaller squares, such as 2 for
      32 x 32.
    conv_lowering: see `models.conv.convolution`.

  Returns:
    A `flax.linen.Module`, which takes images `[n, height, width, channels]` of
    at least 16 x 16 pixels.

  Raises:
    ValueError: for an unknown `normalization` or `conv_lowering`, filters that
      do not divide into groups, or a rate or a size out of bounds.

  References:
    Lee et al., `Meta-Learning with Differentiable Convex Optimization
    <https://arxiv.org/abs/1904.03758>`_, 2019, section 4.1.
    Tian et al., `Rethinking Few-Shot Image Classification: a Good Embedding Is
    All You Need? <https://arxiv.org/abs/2003.11539>`_, 2020, section 4.1.
  """
  check_layers(filters, normalization, conv_lowering)
  check_number("drop_rate", drop_rate, at_least=0, below=1)
  check_counts(block_size=block_size)
  return ResNet(
    num_outputs,
    tuple(filters),
    normalization,
    pooled,
    drop_rate,
    block_size,
    conv_lowering,
  )
