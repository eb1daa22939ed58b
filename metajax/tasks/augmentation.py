"""Random changes of images that keep their class, computed on the device."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from metajax.batches import only_array
from metajax.numerics import check_counts, check_number
from metajax.types import (
  Array,
  Batch,
  Episode,
  PRNGKey,
  Stream,
  TaskFamily,
  as_partial,
)

# `(rng, images [n, height, width, channels]) -> images`, of the same shape and
# dtype: uint8, or floats in [0, 1]. Each image gets its own random change.
Augmentation = Callable[[PRNGKey, Array], Array]

# Weights of red, green and blue in the grey of a pixel, ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
# Folded into the key of an episode. The episode itself uses the numbers 0 to 6.
SUPPORT, QUERY = 0x5A0, 0x5A1


def compose(*augmentations: Augmentation) -> Augmentation:
  """Applies augmentations in order. Without any, images do not change."""

  def augment(rng: PRNGKey, images: Array) -> Array:
    for i, each in enumerate(augmentations):
      images = each(jax.random.fold_in(rng, i), images)
    return images

  return augment


def random_crop(padding: int) -> Augmentation:
  """Moves images by up to `padding` pixels in each direction. Gaps are zero.

  Published settings are 4 for images of 32 x 32 and 8 for 84 x 84.
  """
  check_counts(padding=padding, at_least=0)

  def augment(rng: PRNGKey, images: Array) -> Array:
    edges = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    starts = jax.random.randint(rng, (len(images), 2), 0, 2 * padding + 1)

    def crop(image: Array, start: Array) -> Array:
      begin = (*start, jnp.zeros((), start.dtype))
      return lax.dynamic_slice(image, begin, images.shape[1:])

    return jax.vmap(crop)(jnp.pad(images, edges), starts)

  return augment


def random_flip(probability: float = 0.5) -> Augmentation:
  """Mirrors images, left to right."""
  check_number("probability", probability, at_least=0, at_most=1)

  def augment(rng: PRNGKey, images: Array) -> Array:
    flips = jax.random.bernoulli(
      rng, float(probability), (len(images), 1, 1, 1)
    )
    return jnp.where(flips, images[:, :, ::-1], images)

  return augment


def color_jitter(
  brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4
) -> Augmentation:
  """Changes brightness, contrast and saturation, in this order.

  ::

    x <- clip(f x)
    x <- clip(f x + (1 - f) mean of the image's grey)
    x <- clip(f x + (1 - f) grey of the pixel)

  Each image draws its own f for each line, uniform from 1 - strength to
  1 + strength. The operations are those of Pillow's `ImageEnhance` and of
  torchvision. If the number of channels is not 3, grey is the channels' mean.

  Args:
    brightness: strength of the first line, 0 to 1.
    contrast: strength of the second line, 0 to 1.
    saturation: strength of the third line, 0 to 1.
  """
  strengths = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
  }
  for name, strength in strengths.items():
    check_number(name, strength, at_least=0, at_most=1)

  def augment(rng: PRNGKey, images: Array) -> Array:
    draws = jax.random.uniform(rng, (3, len(images), 1, 1, 1), minval=-1)
    whole = not jnp.issubdtype(images.dtype, jnp.floating)
    x = images.astype(jnp.float32) / 255 if whole else images
    for draw, (name, strength) in zip(draws, strengths.items(), strict=True):
      if strength:
        factor = (1 + strength * draw).astype(x.dtype)
        x = jnp.clip(factor * x + (1 - factor) * _ground(name, x), 0, 1)
    return jnp.round(255 * x).astype(images.dtype) if whole else x

  return augment


def _ground(name: str, x: Array) -> Array:
  """Returns the images that a factor of 0 gives, for one of the operations."""
  if name == "brightness":
    return jnp.zeros((), x.dtype)
  rgb = x.shape[-1] == len(LUMA)
  weights = jnp.asarray(LUMA if rgb else 1 / x.shape[-1], x.dtype)
  grey = (x * weights).sum(-1, keepdims=True)
  return grey if name == "saturation" else grey.mean((1, 2), keepdims=True)


def cutout(size: int) -> Augmentation:
  """Sets a random square of each image to zero.

  The centre is any pixel. The edges of the image may cut the square.

  Args:
    size: the side of the square in pixels.

  References:
    DeVries and Taylor, `Improved Regularization of Convolutional Neural
    Networks with Cutout <https://arxiv.org/abs/1708.04552>`_, 2017, section 3.
  """
  check_counts(size=size, at_least=0)

  def augment(rng: PRNGKey, images: Array) -> Array:
    n, height, width, _ = images.shape
    inside = []
    for key, length in zip(jax.random.split(rng), (height, width), strict=True):
      first = jax.random.randint(key, (n, 1), 0, length) - size // 2
      place = jnp.arange(length)
      inside.append((place >= first) & (place < first + size))
    square = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(square, 0, images).astype(images.dtype)

  return augment


def augmented(
  tasks: TaskFamily,
  support: Augmentation | None = None,
  query: Augmentation | None = None,
) -> TaskFamily:
  """Augments the images of tasks.

  The key of a task draws the same task as with `tasks`. Use the result for
  training only, not for validation and test. Support and query are augmented
  independently, even if they are the same batch, as with `class_batches`.

  Args:
    tasks: a family of images `[n, height, width, channels]`.
    support: the augmentation of the support; None for no change.
    query: the augmentation of the query; None for no change.

  Returns:
    A task family that carries the arrays of `tasks`.
  """
  if isinstance(tasks, Stream):
    return tasks.changed(lambda family: augmented(family, support, query))
  change = functools.partial(_changed, support=support, query=query)
  return jax.tree_util.Partial(change, as_partial(tasks))


def _changed(
  tasks: TaskFamily,
  rng: PRNGKey,
  *,
  support: Augmentation | None,
  query: Augmentation | None,
) -> Episode:
  def change(batch: Batch, augment: Augmentation | None, number: int) -> Batch:
    if augment is None:
      return batch
    images = only_array(batch.inputs, "inputs", "augmented")
    return batch._replace(
      inputs=augment(jax.random.fold_in(rng, number), images)
    )

  episode = tasks(rng)
  return Episode(
    change(episode.support, support, SUPPORT),
    change(episode.query, query, QUERY),
  )


def augmented_copies(
  rng: PRNGKey, batch: Batch, augment: Augmentation, copies: int
) -> Batch:
  """Returns a batch of several augmented copies of each example.

  A head that is fitted to the copies generalises better than one that is fitted
  to the support alone. Tian et al. use 5 copies.

  Args:
    rng: a key.
    batch: `[n, ...]`.
    augment: the augmentation.
    copies: the number of copies of each example.

  Returns:
    A batch `[copies * n, ...]`.

  References:
    Tian et al., `Rethinking Few-Shot Image Classification: a Good Embedding Is
    All You Need? <https://arxiv.org/abs/2003.11539>`_, 2020, section 4.1.
  """
  check_counts(copies=copies)
  several = jax.tree.map(lambda x: jnp.concatenate([x] * copies), batch)
  return several._replace(inputs=augment(rng, several.inputs))
