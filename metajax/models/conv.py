"""The four-block convolutional network of few-shot image classification."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax.models.blocks import is_spread
from metajax.models.dropout import DropBlock
from metajax.models.inputs import check_images
from metajax.models.normalization import (
  BY_BATCH,
  GROUPS,
  NORMALIZATIONS,
  normalize,
)
from metajax.models.patches import FEW_CHANNELS, patch_conv
from metajax.models.pooling import max_pool
from metajax.numerics import check_counts, check_number
from metajax.types import Array

ConvLowering = Literal["auto", "blocks", "patches", "xla"]
KERNEL, WINDOW = (3, 3), (2, 2)
KERNEL_INIT = nn.initializers.glorot_uniform()


class Conv4(nn.Module):
  """See `conv4`."""

  num_outputs: int | None
  filters: tuple[int, ...]
  normalization: str
  strided: bool
  conv_lowering: ConvLowering
  head_init: nn.initializers.Initializer
  num_context: int
  slope: float
  drop_rates: tuple[float, ...]
  joined_blocks: int

  @nn.compact
  def __call__(
    self, inputs: Array, mask: Array | None = None, train: bool = False
  ) -> Array:
    check_images(inputs)
    channels = inputs.shape[-1] - self.num_context
    x, context = inputs[..., :channels], inputs[:, :1, :1, channels:]
    outputs = []
    for block, filters in enumerate(self.filters):
      modulated = self.num_context and block == len(self.filters) // 2
      pooled = not self.strided and not modulated
      norm = functools.partial(
        normalize(self.normalization),
        mask=mask,
        train=train,
        window=WINDOW if pooled else None,
      )
      if pooled and self.normalization in BY_BATCH and self._in_taps(x):
        shape = (*KERNEL, x.shape[-1], filters)
        x, kernel = Kernel(shape, name=f"Conv_{block}")(x)
        x = norm(x, taps=functools.partial(window_taps, kernel=kernel))
      else:
        x = nn.Conv(
          filters,
          KERNEL,
          strides=2 if self.strided else 1,
          padding="SAME",
          use_bias=self.normalization not in BY_BATCH,
          kernel_init=KERNEL_INIT,
          conv_general_dilated_cls=lambda: convolution(self.conv_lowering),
          name=f"Conv_{block}",
        )(x)
        x = norm(x)
      if modulated:
        dense = nn.Dense(2 * filters, use_bias=False, name="modulation")
        scale, shift = jnp.split(dense(context), 2, axis=-1)
        x = (1 + scale) * x + shift
        x = x if self.strided else max_pool(x)
      # After the pooling, of a quarter of the numbers.
      x = nn.leaky_relu(x, self.slope) if self.slope else nn.relu(x)
      if self.drop_rates:
        x = DropBlock(self.drop_rates[block])(x, train)
      outputs.append(x)
    features = [
      y.mean((1, 2)) if self.strided else y.reshape(y.shape[0], -1)
      for y in outputs[-self.joined_blocks :]
    ]
    x = features[0] if len(features) == 1 else jnp.concatenate(features, -1)
    if self.num_outputs is None:
      return x
    return nn.Dense(self.num_outputs, kernel_init=self.head_init)(x)

  def _in_taps(self, x: Array) -> bool:
    """Whether to convolve within the normalisation, see `BatchNorm`.

    A convolution of few channels costs less than the memory of its outputs.
    """
    even = not any(
      size % w for size, w in zip(x.shape[1:3], WINDOW, strict=True)
    )
    blocks = _lowering(self.conv_lowering) == "blocks"
    return blocks and x.shape[-1] < FEW_CHANNELS and even and not is_spread(x)


class Kernel(nn.Module):
  """What an `nn.Conv` without bias convolves, under the same name."""

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Array) -> list[Array]:
    kernel = self.param("kernel", KERNEL_INIT, self.shape, jnp.float32)
    return nn.dtypes.promote_dtype(x, kernel, dtype=None)


def window_taps(x: Array, kernel: Array) -> list[Array]:
  """Returns a convolution as one array for each pixel of pooling windows.

  Together they are the convolution of stride 1 and padding "SAME".
  """
  taps = []
  for a in range(WINDOW[0]):
    for b in range(WINDOW[1]):
      # That of "SAME" is (1, 1); the last window begins a pixel before the end.
      padding = [(1 - a, a), (1 - b, b)]
      taps.append(patch_conv(x, kernel, WINDOW, padding))
  return taps


def conv4(
  num_outputs: int | None,
  *,
  filters: int | Sequence[int] = 64,
  num_blocks: int = 4,
  normalization: str = "batch",
  strided: bool = True,
  conv_lowering: ConvLowering = "auto",
  head_init: nn.initializers.Initializer | None = None,
  num_context: int = 0,
  slope: float = 0.0,
  drop_rates: Sequence[float] = (),
  joined_blocks: int = 1,
) -> nn.Module:
  """Blocks of a 3x3 convolution, a normalisation and a ReLU; a linear head.

  The embedding of ridge regression (R2-D2) is `conv4(None, filters=(96, 192,
  384, 512), strided=False, slope=0.1, joined_blocks=2)`, with dropout where the
  images are few.

  Args:
    num_outputs: width of the head; None leaves it out (an embedding).
    filters: channels of every block, or one number for each.
    num_blocks: how many blocks.
    normalization: see `models.normalization.normalize`. "batch" uses the
      statistics of the very inputs given: predictions are transductive.
    strided: convolutions of stride 2, and the mean over positions before the
      head (MAML's Omniglot network). Otherwise convolutions of stride 1, 2x2
      max-pooling, and the flattened features (its miniImageNet network, and
      that of prototypical networks).
    conv_lowering: "blocks", "patches", "xla", or "auto" to choose by the
      backend; see `convolution`.
    head_init: of the head's weights. None is as in the MAML authors' code, for
      either network: normal with variance 1 if `strided`, else Glorot's.
    num_context: the last channels of the inputs are no image but this many
      numbers c, the same everywhere, that modulate the channels x after the
      normalisation in the third of four blocks, `(1 + A c) x + B c`. (What they
      add before a normalisation by the batch, it takes away.)
    slope: of the ReLU below zero; 0.1 makes it a leaky one.
    drop_rates: of a dropout after each block; none: there is no dropout.
    joined_blocks: the features are those of so many last blocks.

  Returns:
    A `flax.linen.Module`, whose `init(rng, x)` and `apply(params, x)` take
    images `[n, height, width, channels]`.

  Raises:
    ValueError: for an unknown `normalization` or `conv_lowering`, filters or
      rates that are not one for each block, or filters that do not divide into
      groups.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017, section 5.2.
    Snell et al., `Prototypical Networks for Few-shot Learning
    <https://arxiv.org/abs/1703.05175>`_, 2017, section 3.1.
    Zintgraf et al., `Fast Context Adaptation via Meta-Learning
    <https://arxiv.org/abs/1810.03642>`_, 2019 (the context).
    Bertinetto et al., `Meta-learning with differentiable closed-form solvers
    <https://arxiv.org/abs/1805.08136>`_, 2019, section 4.1 (R2-D2).
  """
  check_counts(num_blocks=num_blocks)
  if not isinstance(filters, Sequence):
    filters = (filters,) * num_blocks
  for name, numbers in (("filters", filters), ("drop_rates", drop_rates)):
    if len(numbers) != num_blocks and (name == "filters" or numbers):
      raise ValueError(
        f"{name}={tuple(numbers)}: must be {num_blocks} numbers, one for each "
        "of num_blocks."
      )
  check_number("drop_rates", np.asarray(drop_rates), at_least=0, below=1)
  check_number("joined_blocks", joined_blocks, at_least=1, at_most=num_blocks)
  check_counts(joined_blocks=joined_blocks)
  check_layers(filters, normalization, conv_lowering)
  if head_init is None:
    glorot = nn.initializers.glorot_uniform()
    head_init = nn.initializers.normal(1.0) if strided else glorot
  return Conv4(
    num_outputs,
    tuple(filters),
    normalization,
    strided,
    conv_lowering,
    head_init,
    num_context,
    slope,
    tuple(drop_rates),
    joined_blocks,
  )


def check_layers(
  filters: Sequence[int], normalization: str, conv_lowering: str
) -> None:
  """Refuses convolutions that cannot be made, by one line."""
  for name, value, allowed in (
    ("normalization", normalization, tuple(NORMALIZATIONS)),
    ("conv_lowering", conv_lowering, get_args(ConvLowering)),
  ):
    if value not in allowed:
      raise ValueError(f"{name}={value!r}: must be one of {allowed}.")
  unit = GROUPS if normalization == "group" else 1
  for number in filters:
    if number < 1 or number % unit:
      raise ValueError(
        f"filters={number}: must be a multiple of {unit} with "
        f"normalization={normalization}."
      )


def convolution(lowering: ConvLowering) -> Callable[..., Array]:
  """Returns the function that computes convolutions, here for all models.

  Args:
    lowering: "xla" is `lax.conv_general_dilated`, "patches" is `patch_conv`,
      "blocks" is that with `blocks=True`. "auto" is "blocks" on CPUs, "xla" on
      TPUs and else "patches": XLA's convolutions with per-task kernels are slow
      (a MAML step of 32 tasks took 5.6 ms with "xla" and 1.1 ms with "patches"
      on an H100; one of 8 tasks, one at a time, 0.40 s and 0.04 s on a CPU). On
      TPUs nothing was measured, and "blocks" on CPUs alone.
  """
  lowering = _lowering(lowering)
  if lowering == "blocks":
    return functools.partial(patch_conv, blocks=True)
  return patch_conv if lowering == "patches" else lax.conv_general_dilated


def _lowering(lowering: ConvLowering) -> ConvLowering:
  """What "auto" is on this backend."""
  choices: dict[str, ConvLowering] = {"cpu": "blocks", "tpu": "xla"}
  auto = choices.get(jax.default_backend(), "patches")
  return auto if lowering == "auto" else lowering
