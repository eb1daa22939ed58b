"""Normalisation layers that keep no running statistics, by name."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from metajax.types import Array

GROUPS = 8  # Of channels, in "group".


class BatchNorm(nn.Module):
  """Normalises by the statistics of the very inputs given (transductive).

  Over all axes but the last::

    y = scale (x - mean(x)) / sqrt(var(x) + epsilon) + bias

  There are no running averages, so `apply` is pure, in training and at test
  alike: the examples of a batch see each other. With a mask `[n]` the
  statistics are of the real examples.
  """

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None) -> Array:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    axes = tuple(range(x.ndim - 1))
    real = None
    if mask is not None:
      real = mask.reshape(-1, *[1] * (x.ndim - 1))
    centred = x - x.mean(axes, where=real)
    variance = jnp.square(centred).mean(axes, where=real)
    return centred * (scale * lax.rsqrt(variance + self.epsilon)) + bias


def _layer_norm() -> Callable[..., Array]:
  def layer(x: Array, mask: Array | None = None) -> Array:
    del mask
    # Over everything but the examples; scale and bias by channel.
    return nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)))(x)

  return layer


def _group_norm() -> Callable[..., Array]:
  def layer(x: Array, mask: Array | None = None) -> Array:
    del mask
    return nn.GroupNorm(num_groups=GROUPS)(x)

  return layer


NORMALIZATIONS: dict[str, Callable[[], Callable[..., Array]]] = {
  "batch": BatchNorm,
  "layer": _layer_norm,
  "group": _group_norm,
  "none": lambda: lambda x, mask=None: x,
}


def normalize(name: str) -> Callable[..., Array]:
  """Returns a fresh normalisation layer, `(x, mask=None) -> x`.

  Args:
    name: "batch" (statistics of the very inputs given: transductive), "layer"
      (over all but the example axis), "group" (8 groups of channels) or "none".

  Raises:
    ValueError: for any other name.
  """
  if name not in NORMALIZATIONS:
    raise ValueError(
      f"normalization={name!r}: must be one of {sorted(NORMALIZATIONS)}."
    )
  return NORMALIZATIONS[name]()
