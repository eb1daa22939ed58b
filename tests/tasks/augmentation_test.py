"""Each change of images against numpy and Pillow, and who is changed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from metajax.tasks import class_batches, few_shot_episodes
from metajax.tasks.augmentation import (
  augmented,
  augmented_copies,
  color_jitter,
  compose,
  cutout,
  random_crop,
  random_flip,
)
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), np.uint8)
ALL = {
  "crop": random_crop(2),
  "flip": random_flip(),
  "jitter": color_jitter(),
  "cutout": cutout(3),
}
ALL["composed"] = compose(*ALL.values())


@functools.cache
def _jitted(name):
  return jax.jit(ALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_jit_vmap_dtypes_and_keys(name):
  augment = _jitted(name)
  found = augment(RNG, IMAGES)
  assert (found.dtype, found.shape) == (np.uint8, IMAGES.shape)
  assert np.array_equal(found, augment(RNG, IMAGES))
  assert not np.array_equal(found, augment(jax.random.key(1), IMAGES))
  # Each image is drawn for by itself.
  same = np.broadcast_to(IMAGES[:1], IMAGES.shape)
  assert len(np.unique(augment(RNG, same), axis=0)) > 1
  keys = jax.random.split(RNG, 2)
  both = jax.jit(jax.vmap(ALL[name]))(keys, jnp.stack([IMAGES] * 2))
  for key, images in zip(keys, both, strict=True):
    np.testing.assert_array_equal(images, augment(key, IMAGES))
  # Of bytes to half a step for each operation that rounds.
  fractions = augment(RNG, IMAGES.astype(np.float32) / 255)
  assert fractions.dtype == np.float32
  np.testing.assert_allclose(255 * fractions, found, atol=0.51)


@pytest.mark.parametrize(
  "augment",
  [
    compose(),
    random_crop(0),
    random_flip(0),
    color_jitter(0, 0, 0),
    cutout(0),
  ],
)
def test_nothing_is_changed_by_no_strength(augment):
  np.testing.assert_array_equal(augment(RNG, IMAGES), IMAGES)


def test_crops_are_all_windows_of_the_padded_image():
  padded = np.pad(IMAGES, [(0, 0), (2, 2), (2, 2), (0, 0)])
  seen = set()
  for image, found in zip(padded, _jitted("crop")(RNG, IMAGES), strict=True):
    places = [
      (i, j)
      for i, j in np.ndindex(5, 5)
      if np.array_equal(image[i : i + 6, j : j + 5], found)
    ]
    assert len(places) == 1
    seen.update(places)
  assert len(seen) > 18  # 64 draws of 25 leave 2 of them out, on average.


def test_flips_are_of_rows_from_left_to_right():
  found = np.asarray(_jitted("flip")(RNG, IMAGES))
  kept = (found == IMAGES).all((1, 2, 3))
  assert 20 < kept.sum() < 44  # Of 64, within 3 sigma.
  np.testing.assert_array_equal(found[~kept], IMAGES[~kept][:, :, ::-1])
  every = random_flip(1.0)(RNG, IMAGES)
  np.testing.assert_array_equal(every, IMAGES[:, :, ::-1])


@pytest.mark.parametrize(
  "name, enhance",
  [
    ("brightness", ImageEnhance.Brightness),
    ("contrast", ImageEnhance.Contrast),
    ("saturation", ImageEnhance.Color),
  ],
)
def test_jitter_is_pillows_by_some_factor(name, enhance):
  """Pillow rounds the grey of pixels, and cuts off fractions at the end."""
  none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
  augment = jax.jit(color_jitter(**{**none, name: 0.5}))
  factors = []
  for image, found in zip(IMAGES[:8], augment(RNG, IMAGES[:8]), strict=True):
    pillow = enhance(Image.fromarray(image)).enhance
    candidates = np.linspace(0.5, 1.5, 401)
    errors = [
      np.abs(np.asarray(pillow(f), np.int32) - np.int32(found)).max()
      for f in candidates
    ]
    assert min(errors) <= 2
    factors.append(candidates[np.argmin(errors)])
  assert max(factors) - min(factors) > 0.3


def test_jitter_of_grey_images_is_of_their_one_channel():
  grey = IMAGES[..., :1] / np.float32(255)
  np.testing.assert_allclose(color_jitter(0, 0, 1)(RNG, grey), grey, atol=1e-6)
  found = color_jitter(0, 0.5, 0)(RNG, 0.25 + grey / 2)
  np.testing.assert_allclose(
    found.mean((1, 2, 3)), 0.25 + grey.mean((1, 2, 3)) / 2, rtol=1e-5
  )


def test_cutout_is_one_square_around_any_pixel():
  found = np.asarray(_jitted("cutout")(RNG, IMAGES))
  gone = (found == 0).all(-1)
  assert np.array_equal(found[~gone], IMAGES[~gone])
  heights, widths = set(), set()
  for square in gone:
    rows, columns = np.nonzero(square.any(1))[0], np.nonzero(square.any(0))[0]
    assert square.sum() == len(rows) * len(columns)
    assert square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    heights.add(len(rows))
    widths.add(len(columns))
  assert heights == widths == {2, 3}  # Edges leave 2 of 3 pixels.


def _tasks(rng):
  """Any images by the key, as support and query."""
  order = jax.random.permutation(rng, 8)
  images, labels = jnp.asarray(IMAGES[:8])[order], jnp.arange(4)
  return Episode(Batch(images[:4], labels), Batch(images[4:], labels))


def test_only_what_is_asked_for_is_changed():
  def draw(**who):
    return augmented(_tasks, **who)(RNG)

  plain = _tasks(RNG)
  for same in (draw(), draw(support=compose(), query=compose())):
    jax.tree.map(np.testing.assert_array_equal, same, plain)
  crop = _jitted("crop")
  both = draw(support=crop, query=crop)
  for i, name in enumerate(("support", "query")):
    found = draw(**{name: crop})
    assert np.array_equal(found[1 - i].inputs, plain[1 - i].inputs)
    assert not np.array_equal(found[i].inputs, plain[i].inputs)
    assert np.array_equal(found[i].inputs, both[i].inputs)
    assert np.array_equal(found[i].targets, plain[i].targets)


def test_a_batch_that_is_support_and_query_is_changed_twice():
  batches = class_batches(jnp.asarray(IMAGES.reshape(8, 8, 6, 5, 3)), 2)
  family = augmented(batches, ALL["crop"], ALL["crop"])
  support, query = jax.jit(lambda family: family(RNG))(family)
  assert not np.array_equal(support.inputs, query.inputs)


def test_the_family_carries_its_images():
  tasks = few_shot_episodes(IMAGES.reshape(8, 8, 6, 5, 3), 3, 2, 2)
  carried = jax.tree.leaves(augmented(tasks, ALL["flip"]))
  assert sum(x.size for x in carried) >= IMAGES.size


def test_copies():
  batch = Batch(jnp.asarray(IMAGES[:4]), jnp.arange(4), jnp.arange(4) < 3)
  found = augmented_copies(RNG, batch, ALL["crop"], 3)
  np.testing.assert_array_equal(found.targets, np.tile(np.arange(4), 3))
  np.testing.assert_array_equal(found.mask, np.tile(np.arange(4) < 3, 3))
  assert found.inputs.shape == (12, 6, 5, 3)
  assert not np.array_equal(found.inputs[:4], found.inputs[4:8])
  same = augmented_copies(RNG, batch, compose(), 2).inputs
  np.testing.assert_array_equal(same, np.concatenate([IMAGES[:4]] * 2))


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: random_crop(-1), "padding=-1: must be"),
    (lambda: random_flip(1.5), "probability=1.5: must be"),
    (lambda: color_jitter(contrast=2), "contrast=2: must be"),
    (lambda: cutout(-3), "size=-3: must be"),
    (lambda: augmented_copies(RNG, None, compose(), 0), "copies=0: must be"),
  ],
)
def test_impossible_strengths(make, message):
  with pytest.raises(ValueError, match=message):
    make()
