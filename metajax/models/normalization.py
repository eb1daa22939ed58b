"""Normalisation layers, by name."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from metajax.types import Array

GROUPS = 8  # Of channels, in "group".
# Those that subtract whatever a bias before them adds.
BY_BATCH = ("batch", "running")


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
  def __call__(
    self, x: Array, mask: Array | None = None, train: bool = False
  ) -> Array:
    del train
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    axes = tuple(range(x.ndim - 1))
    real = None if mask is None else _column(mask, x)
    centred = x - x.mean(axes, where=real)
    variance = jnp.square(centred).mean(axes, where=real)
    return centred * (scale * lax.rsqrt(variance + self.epsilon)) + bias


def _column(mask: Array, x: Array) -> Array:
  """The mask `[n]` as `[n, 1, ...]`, of the rank of x."""
  return mask.reshape(-1, *[1] * (x.ndim - 1))


def _running_batch_norm() -> Callable[..., Array]:
  def layer(x: Array, mask: Array | None = None, train: bool = False) -> Array:
    norm = nn.BatchNorm(use_running_average=not train, use_fast_variance=False)
    return norm(x, mask=None if mask is None else _column(mask, x))

  return layer


def _layer_norm() -> Callable[..., Array]:
  def layer(x: Array, mask: Array | None = None, train: bool = False) -> Array:
    del mask, train
    # Over everything but the examples; scale and bias by channel.
    return nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)))(x)

  return layer


def _group_norm() -> Callable[..., Array]:
  def layer(x: Array, mask: Array | None = None, train: bool = False) -> Array:
    del mask, train
    return nn.GroupNorm(num_groups=GROUPS)(x)

  return layer


NORMALIZATIONS: dict[str, Callable[[], Callable[..., Array]]] = {
  "batch": BatchNorm,
  "running": _running_batch_norm,
  "layer": _layer_norm,
  "group": _group_norm,
  "none": lambda: lambda x, mask=None, train=False: x,
}


def normalize(name: str) -> Callable[..., Array]:
  """Returns a fresh normalisation layer, `(x, mask=None, train=False) -> x`.

  Args:
    name: "batch" (statistics of the very inputs given: transductive), "running"
      (the same in training, and flax's running averages of them in evaluation,
      which are state), "layer" (over all but the example axis), "group" (8
      groups of channels) or "none".

  Raises:
    ValueError: for any other name.
  """
  if name not in NORMALIZATIONS:
    raise ValueError(
      f"normalization={name!r}: must be one of {sorted(NORMALIZATIONS)}."
    )
  return NORMALIZATIONS[name]()


def statistics(name: str) -> str | None:
  """Returns which statistics of batches a layer uses in evaluation.

  "batch", those of the very inputs; "running", the averages of training's; or
  None, if none.
  """
  return name if name in BY_BATCH else None
