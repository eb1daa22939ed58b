"""Normalisation layers, by name."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from metajax.models.blocks import in_blocks
from metajax.models.pooling import first_largest, max_pool
from metajax.types import Array

Window = tuple[int, int]
GROUPS = 8  # The number of groups of channels in "group".
# These subtract the mean over the batch, so a bias before them has no effect.
BY_BATCH = ("batch", "running")


class BatchNorm(nn.Module):
  """Normalises by statistics of the present inputs, or by running averages.

  The statistics are over all axes but the last::

    y = scale (x - mean(x)) / sqrt(var(x) + epsilon) + bias

  Without `running` there is no state. In training and at test, the prediction
  of an example depends on the other examples of its batch (transductive). With
  `running`, training updates averages of both statistics, as flax's layer
  does, and evaluation uses the averages::

    average = momentum average + (1 - momentum) statistic

  With a mask `[n]`, the statistics are those of the real examples. Inputs of
  half precision have statistics in float32.

  With a `window`, the layer returns `max_pool(y, window)`. It pools x first and
  normalises the few numbers that are left. The result is the same, because y is
  monotonic in x: it increases with x, or decreases in channels of negative
  `scale`, where the smallest x is taken. Output and gradient of 75 arrays of
  84 x 84 x 32 took 90 ms instead of 158 on one core, with 97 MB of temporaries
  instead of 271.

  With `taps`, a function of examples, the layer normalises and pools `taps(x)`:
  one array `[n, rows, columns, channels]` for each pixel of a window. It
  computes them for a few examples at a time, and again for the backward pass.
  It stores only the mean, the variance and the pooled array of each example. A
  MAML task of conv4-32 with 84 x 84 images took the same time (0.52 to 0.55 s)
  with 136 MB of temporaries instead of 254.
  """

  running: bool = False
  momentum: float = 0.99
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | None = None,
    train: bool = False,
    window: Window | None = None,
    taps: Callable[[Array], list[Array]] | None = None,
  ) -> Array:
    channels = (x if taps is None else jax.eval_shape(taps, x)[0]).shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    measured = train or not self.running
    # Of padding alone there are no statistics. Those of the padding are finite,
    # and what they normalise has no effect.
    some = bool(len(x)) if mask is None else mask.any()
    mask = None if mask is None else mask | ~some
    moments: tuple[Array, ...] = ()
    if not len(x):  # No example, and so nothing to measure or to normalise.
      x = x if taps is None else first_largest(taps(x))
      x = x if window is None else max_pool(x, window)
      moments = (jnp.zeros(channels), jnp.ones(channels)) if measured else ()
    elif taps is None:
      if measured:
        moments = _moments([x], tuple(range(x.ndim - 1)), mask)
      if window is not None:
        x = max_pool(x, window, lowest=scale < 0)
    else:

      def each(x: Array) -> tuple[Array, ...]:
        pixels = taps(x)
        moments = _moments(pixels, (1, 2)) if measured else ()
        return *moments, first_largest(pixels, scale < 0)

      size = sum(y.size * y.dtype.itemsize for y in jax.eval_shape(taps, x))
      *parts, x = in_blocks(each, x, 2 * size // x.shape[0])
      if measured:
        means, variances = parts
        mean, between = _moments([means], (0,), mask)
        weights = None if mask is None else _column(mask, means)
        moments = mean, _apart(variances.mean(0, where=weights)) + between
    if self.running:
      moments = self._averaged(channels, moments, some)
    mean, variance = moments
    slope = _apart(scale * lax.rsqrt(variance + self.epsilon))
    y = (x - mean) * slope + bias
    return y.astype(jnp.result_type(x, scale, bias))

  def _averaged(
    self, channels: int, moments: tuple[Array, ...], some: Array | bool
  ) -> tuple[Array, ...]:
    """Updates the averages by what was measured, or returns the averages."""
    averages = (
      self.variable("batch_stats", "mean", jnp.zeros, (channels,)),
      self.variable("batch_stats", "var", jnp.ones, (channels,)),
    )
    if not moments:
      return tuple(average.value for average in averages)
    if not self.is_initializing():
      for average, new in zip(averages, moments, strict=True):
        kept, share = self.momentum * average.value, 1 - self.momentum
        moved = (kept + share * new).astype(average.value.dtype)
        kept = moved if some is True else jnp.where(some, moved, average.value)
        average.value = kept
    return moments


def _moments(
  parts: list[Array], axes: tuple[int, ...], mask: Array | None = None
) -> tuple[Array, Array]:
  """Returns mean and variance over `axes` and over all parts.

  The parts have equal shapes. With a mask `[n]`, only real examples count.
  """
  real = None if mask is None else _column(mask, parts[0])
  precision = jnp.promote_types(parts[0].dtype, jnp.float32)
  parts = [part.astype(precision) for part in parts]

  def averaged(parts: list[Array]) -> Array:
    means = [jnp.mean(part, axes, where=real) for part in parts]
    return _apart(functools.reduce(jnp.add, means) / len(means))

  mean = averaged(parts)
  # The squares are about a constant centre, so their derivatives need no sums
  # over all of x. The second term is zero, but its derivatives are not: they
  # are those through the mean.
  centre = lax.stop_gradient(mean)
  around = jnp.expand_dims(centre, axes)
  variance = averaged([jnp.square(part - around) for part in parts])
  return mean, variance - jnp.square(mean - centre)


def _apart(channels: Array) -> Array:
  """Returns `[channels]`, computed apart from the loops over x on CPUs.

  The same holds for its derivatives. Otherwise XLA would compute them within
  the loops over all of x, again for each number. In second derivatives these
  are dozens of operations. A MAML task of conv4-32 spent a fifth of its time in
  them. XLA has no option against it, but it does not merge a product of
  matrices into a loop. The product with the identity of two rows is exact and
  does not mix channels.
  """
  if jax.default_backend() != "cpu" or channels.ndim > 1:
    return channels
  rows = jnp.stack([channels, jnp.zeros_like(channels)])
  identity = jnp.eye(2, dtype=channels.dtype)
  return jnp.matmul(identity, rows, precision=lax.Precision.HIGHEST)[0]


def _column(mask: Array, x: Array) -> Array:
  """Returns the mask `[n]` as `[n, 1, ...]`, with the rank of x."""
  return mask.reshape(-1, *[1] * (x.ndim - 1))


def _layer(x: Array, mask: Array | None, train: bool) -> Array:
  del mask, train
  # Statistics of each example. Scale and bias of each channel.
  return nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)))(x)


def _group(x: Array, mask: Array | None, train: bool) -> Array:
  del mask, train
  return nn.GroupNorm(num_groups=GROUPS)(x)


def _none(x: Array, mask: Array | None, train: bool) -> Array:
  del mask, train
  return x


def _then_pooled(norm: Callable[..., Array]) -> Callable[[], Callable]:
  """Returns a constructor of a layer that normalises, then pools."""

  def layer(
    x: Array,
    mask: Array | None = None,
    train: bool = False,
    window: Window | None = None,
  ) -> Array:
    y = norm(x, mask, train)
    return y if window is None else max_pool(y, window)

  return lambda: layer


NORMALIZATIONS: dict[str, Callable[[], Callable[..., Array]]] = {
  "batch": BatchNorm,
  "running": functools.partial(BatchNorm, running=True),
  "layer": _then_pooled(_layer),
  "group": _then_pooled(_group),
  "none": _then_pooled(_none),
}


def normalize(name: str) -> Callable[..., Array]:
  """Returns a fresh normalisation layer.

  The layer is `(x, mask=None, train=False, window=None) -> x`. With a window,
  it also max-pools the result. This may be cheaper than pooling afterwards, see
  `BatchNorm`.

  Args:
    name: "batch" (statistics of the present inputs: transductive), "running"
      (the same in training; in evaluation running averages, which are state),
      "layer" (over all axes but that of the examples), "group" (8 groups of
      channels) or "none".

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

  "batch" are those of the present inputs. "running" are averages over training.
  None means that the layer uses no statistics of batches.
  """
  return name if name in BY_BATCH else None
