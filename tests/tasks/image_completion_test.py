"""Image completion: the value of each place is that of the image's pixel."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from metajax.tasks.image_completion import image_completion

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 9, 3), np.uint8)
TASKS = image_completion(IMAGES, (3, 20), (2, 20), max_points=30)


@pytest.mark.slow
def test_values_are_those_of_the_pixels_of_one_image():
  for key in jax.random.split(jax.random.key(0), 5):
    support, query = TASKS(key)
    places, values = [], []
    for batch in (support, query):
      x, y = (np.asarray(a)[batch.mask] for a in (batch.inputs, batch.targets))
      row = (x[:, 0] + 1) / 2 * 4
      column = (x[:, 1] + 1) / 2 * 8
      places.append(np.rint(np.stack([row, column])).astype(int))
      np.testing.assert_allclose([row, column], places[-1], atol=1e-5)
      values.append(y * 255)
    row, column = np.concatenate(places, 1)
    # No pixel is there twice, neither in the support nor in the query.
    assert len(set(zip(row, column, strict=True))) == len(row) <= 30
    found = np.concatenate(values)
    right = [np.allclose(image[row, column], found) for image in IMAGES]
    assert sum(right) == 1


@pytest.mark.slow
def test_every_image_and_pixel_is_drawn():
  """The corners, too, and no image more than by chance."""
  support, _ = jax.vmap(TASKS)(jax.random.split(jax.random.key(1), 2000))
  x = np.asarray(support.inputs)[support.mask]
  assert len(np.unique(np.round(x, 4), axis=0)) == 5 * 9
  assert x.min() == -1
  assert x.max() == 1
  one = image_completion(
    np.arange(7, dtype=np.uint8)[:, None, None, None] + np.zeros_like(IMAGES),
    2,
    2,
    max_points=None,
  )
  support, query = jax.vmap(one)(jax.random.split(jax.random.key(2), 2000))
  assert support.mask is query.mask is None
  image = np.rint(np.asarray(support.targets[:, 0, 0]) * 255).astype(int)
  counts = np.bincount(image, minlength=7)
  assert (np.abs(counts - 2000 / 7) < 4.5 * (2000 / 7) ** 0.5).all()


@pytest.mark.slow
def test_digits_of_scikit_learn_are_images():
  images = (load_digits().images * 15.9375).astype(np.uint8)[..., None]
  support, query = image_completion(images, 20, 44, max_points=64)(
    jax.random.key(0)
  )
  assert support.targets.shape == (20, 1)
  assert query.inputs.shape == (44, 2)
  assert 0 <= query.targets.min() < query.targets.max() <= 1


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (IMAGES / 255, r"images: float64 \(7, 5, 9, 3\) given, must be uint8"),
    (IMAGES[0], r"images: uint8 \(5, 9, 3\) given, must be uint8 \[images"),
    (IMAGES[:0], r"images: uint8 \(0, 5, 9, 3\) given"),
    (IMAGES, "images of 5 x 9 = 45 pixels: a task needs 199; give fewer"),
  ],
)
def test_bad_arguments_are_refused(images, message):
  with pytest.raises(ValueError, match=message):
    image_completion(images)
