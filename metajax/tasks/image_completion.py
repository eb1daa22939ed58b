"""Completion of images: regression from places of pixels to their values."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax.tasks.form import Number
from metajax.tasks.points import divide, division
from metajax.types import Array, Episode, PRNGKey, TaskFamily


def image_completion(
  images: Array | np.ndarray,
  shots: Number = (3, 196),
  query_shots: Number = (3, 196),
  *,
  max_points: int | None = 199,
) -> TaskFamily:
  """Builds tasks of predicting pixels of an image from other pixels of it.

  A task is an image. Its pixels are drawn without replacement. The default
  numbers are those of the program of Nguyen and Grover for images of 28 x 28.

  Args:
    images: `[images, height, width, channels]`, uint8. Give the images of one
      split, such as those of the training classes.
    shots: number of support pixels, or the least and most.
    query_shots: number of query pixels, or the least and most.
    max_points: most pixels of a task, both together.

  Returns:
    A task family that carries the images. Inputs are `[n, 2]`, row and column,
    from -1 for the first to 1 for the last. Targets are `[n, channels]`, values
    in [0, 1].

  Raises:
    ValueError: if the images have another form, or too few pixels.

  References:
    Garnelo et al., `Conditional Neural Processes
    <https://arxiv.org/abs/1807.01613>`_, 2018, section 4.2.
  """
  if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
    raise ValueError(
      f"images: {images.dtype} {images.shape} given, must be uint8 [images, "
      "height, width, channels]."
    )
  points = division(shots, query_shots, max_points)
  height, width = images.shape[1:3]
  if points.num_points > height * width:
    raise ValueError(
      f"images of {height} x {width} = {height * width} pixels: a task needs "
      f"{points.num_points}; give fewer shots and query_shots, or max_points."
    )

  def sample(images: Array, rng: PRNGKey) -> Episode:
    image_key, pixel_key, division_key = jax.random.split(rng, 3)
    image = images[jax.random.randint(image_key, (), 0, len(images))]
    pixels = jax.random.permutation(pixel_key, height * width)
    chosen = pixels[: points.num_points]
    x = pixel_places(height, width)[chosen]
    y = image.reshape(height * width, -1)[chosen] / jnp.float32(255)
    return divide(division_key, x, y, points)

  return jax.tree_util.Partial(sample, jnp.asarray(images))


def pixel_places(height: int, width: int) -> Array:
  """Returns the inputs `[height * width, 2]` of all pixels, row by row."""
  row, column = jnp.divmod(jnp.arange(height * width), width)
  return jnp.stack([_place(row, height), _place(column, width)], axis=-1)


def _place(index: Array, size: int) -> Array:
  return 2 * index.astype(jnp.float32) / max(size - 1, 1) - 1
