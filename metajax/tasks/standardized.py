"""Images whose channels have mean 0 and deviation 1 over a data set."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.tasks.stored_images import StoredImages
from metajax.types import (
  Array,
  Episode,
  PRNGKey,
  Stream,
  TaskFamily,
  as_partial,
)

PART = 1024  # Images of an array that are measured at once.


class Channels(NamedTuple):
  """Mean and deviation of each channel, for pixels in [0, 1].

  Attributes:
    mean: a number for each channel.
    deviation: a number for each channel, not zero.
  """

  mean: tuple[float, ...]
  deviation: tuple[float, ...]

  def standardize(self, images: Array) -> Array:
    """Returns `(x - mean) / deviation` of `[..., channels]`."""
    return (images - jnp.asarray(self.mean)) / jnp.asarray(self.deviation)

  def restore(self, images: Array) -> Array:
    """Returns the pixels in [0, 1] of standardised images."""
    return images * jnp.asarray(self.deviation) + jnp.asarray(self.mean)


def channels_of(images: np.ndarray | StoredImages) -> Channels:
  """Measures the channels of uint8 images `[n, height, width, channels]`.

  All sums are of integers, so the order of the images does not matter. A
  constant channel gets deviation 1.
  """
  totals = np.zeros((2, images.shape[-1]), np.int64)
  for part in _parts(images):  # To save memory.
    x = part.astype(np.int32)
    totals += np.stack([y.sum((0, 1, 2), dtype=np.int64) for y in (x, x * x)])
  count = math.prod(images.shape[:-1])
  mean, square = totals / count
  variance = np.maximum(square - mean**2, 0)
  deviation = np.where(variance < 1e-6, 255, np.sqrt(variance))
  return Channels(*(tuple((x / 255).tolist()) for x in (mean, deviation)))


def _parts(images: np.ndarray | StoredImages) -> Iterable[np.ndarray]:
  if isinstance(images, StoredImages):
    return images.parts()
  return (images[i : i + PART] for i in range(0, len(images), PART))


def standardized(tasks: TaskFamily, channels: Channels) -> TaskFamily:
  """Standardises the images of tasks when they are drawn.

  Args:
    tasks: a family of images `[n, height, width, channels]` in [0, 1]. An
      augmentation must already be part of this family.
    channels: the mean and deviation, usually those of the training classes.

  Returns:
    A task family of the same tasks. Padding stays zero.

  Raises:
    ValueError: if the images have another number of channels.
  """
  if isinstance(tasks, Stream):
    return tasks.changed(lambda family: standardized(family, channels))
  shape = jax.eval_shape(tasks, jax.random.key(0)).support.inputs.shape
  if shape[-1] != len(channels.mean):
    raise ValueError(
      f"channels: {len(channels.mean)} of them given, must be {shape[-1]}, "
      "those of the images."
    )

  def sample(tasks: TaskFamily, rng: PRNGKey) -> Episode:
    episode = tasks(rng)
    made = []
    for batch in episode:
      inputs = channels.standardize(batch.inputs)
      if batch.mask is not None:
        inputs = jnp.where(batch.mask[:, None, None, None], inputs, 0)
      made.append(batch._replace(inputs=inputs))
    return Episode(*made)

  return jax.tree_util.Partial(sample, as_partial(tasks))
