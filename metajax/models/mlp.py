"""Multilayer perceptrons."""

import math
from collections.abc import Sequence

import flax.linen as nn

from metajax.models.normalization import normalize
from metajax.types import Array


class MLP(nn.Module):
  """Dense layers, each with a normalisation and a ReLU, and a linear head.

  The networks of the MAML paper are `MLP(1, (40, 40))` for sinusoids and
  `MLP(ways, (256, 128, 64, 64), normalization="batch")` for Omniglot.

  Attributes:
    num_outputs: width of the head; None for no head (an embedding).
    hidden: widths of the hidden layers.
    normalization: see `models.normalization.normalize`.
  """

  num_outputs: int | None
  hidden: Sequence[int] = (40, 40)
  normalization: str = "none"

  @nn.compact
  def __call__(
    self, inputs: Array, mask: Array | None = None, train: bool = False
  ) -> Array:
    # Not -1, which an array without examples would not define.
    x = inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))
    for width in self.hidden:
      x = nn.Dense(width)(x)
      x = nn.relu(normalize(self.normalization)(x, mask, train))
    return x if self.num_outputs is None else nn.Dense(self.num_outputs)(x)
