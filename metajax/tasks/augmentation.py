"""Changes of images that keep their class, on the device, within jit."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from metajax.batches import only_array
from metajax.numerics import check_number
from metajax.types import (
  Array,
  Batch,
  Episode,
  PRNGKey,
  TaskFamily,
  as_partial,
)

# `(rng, images [n, height, width, channels]) -> images`, of the same shape and
# dtype: uint8, or floats in [0, 1]. Each image is drawn for by itself.
Augmentation = Callable[[PRNGKey, Array], Array]

# Of red, green and blue in the brightness of a pixel, ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
# Folded into the key of an episode, whose own keys are those of 0 to 4.
SUPPORT, QUERY = 0x5A0, 0x5A1


def compose(*augmentations: Augmentation) -> Augmentation:
  """Does one after the other; none of them changes nothing."""

  def augment(rng: PRNGKey, images: Array) -> Array:
    for i, each in enumerate(augmentations):
      images = each(jax.random.fold_in(rng, i), images)
    return images

  return augment


def random_crop(padding: int) -> Augmentation:
  """Moves images by up to `padding` pixels, each way; what comes in is zero.

  Published settings are 4 for 32 x 32 and 8 for 84 x 84.
  """
  check_number("padding", padding, at_least=0)

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

  with an f for each image and line, uniform from 1 - strength to 1 + strength.
  They are the operations of Pillow's `ImageEnhance` and of torchvision. Images
  of another number of channels than 3 have the channels' mean as grey.

  Args:
    brightness: strength of the first line, 0 to 1.
    contrast: of the second.
    saturation: of the third.
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
  """Returns what images become without brightness, contrast or saturation."""
  if name == "brightness":
    return jnp.zeros((), x.dtype)
  rgb = x.shape[-1] == len(LUMA)
  weights = jnp.asarray(LUMA if rgb else 1 / x.shape[-1], x.dtype)
  grey = (x * weights).sum(-1, keepdims=True)
  return grey if name == "saturation" else grey.mean((1, 2), keepdims=True)


def cutout(size: int) -> Augmentation:
  """Sets a square to zero, whose centre is any pixel; edges cut it.

  Args:
    size: of its sides, in pixels.

  References:
    DeVries and Taylor, `Improved Regularization of Convolutional Neural
    Networks with Cutout <https://arxiv.org/abs/1708.04552>`_, 2017, section 3.
  """
  check_number("size", size, at_least=0)

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
  """Changes the images of tasks, which are those of `tasks` by the same key.

  It is for training: validation and test keep the family that they have. An
  episode whose query is also its support, as `class_batches` draws them, is
  changed twice, by itself.

  Args:
    tasks: a family of images `[n, height, width, channels]`.
    support: of the support; None: it stays as it is.
    query: of the query, likewise.

  Returns:
    A task family, which carries the arrays of `tasks`.
  """
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
  """Returns a batch of so many changed copies of each example.

  A head fitted to them generalises better than one fitted to the support alone;
  Tian et al. take 5.

  Args:
    rng: a key.
    batch: `[n, ...]`.
    augment: changes images.
    copies: how many.

  Returns:
    A batch `[copies * n, ...]`.

  References:
    Tian et al., `Rethinking Few-Shot Image Classification: a Good Embedding Is
    All You Need? <https://arxiv.org/abs/2003.11539>`_, 2020, section 4.1.
  """
  check_number("copies", copies, at_least=1)
  several = jax.tree.map(lambda x: jnp.concatenate([x] * copies), batch)
  return several._replace(inputs=augment(rng, several.inputs))
