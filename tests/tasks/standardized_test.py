"""Images of mean 0 and deviation 1, by their channels."""

import jax
import numpy as np
import pytest

from metajax.tasks import few_shot_episodes
from metajax.tasks.standardized import Channels, channels_of, standardized

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 3, 5, 3), np.uint8)
CHANNELS = Channels((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))


def test_channels_are_those_of_float64():
  images = np.random.default_rng(1).integers(0, 256, (1500, 3, 2, 3), np.uint8)
  images[..., 2] = 7
  found = channels_of(images)
  pixels = images.reshape(-1, 3) / 255
  np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.deviation[:2], pixels.std(0)[:2], rtol=1e-9)
  assert found.deviation[2] == 1.0


@pytest.mark.slow
def test_tasks_are_the_same_but_for_their_scale():
  """Also where ways vary: padding is still zero."""
  plain = few_shot_episodes(IMAGES, (2, 3), 1, 2)
  family = standardized(plain, CHANNELS)
  keys = jax.random.split(jax.random.key(3), 8)
  both = (jax.jit(jax.vmap(f))(keys) for f in (family, plain))
  for found, expected in zip(*both, strict=True):
    np.testing.assert_array_equal(found.targets, expected.targets)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert not found.mask.all()
    scaled = (np.float64(expected.inputs) - [0.5, 0.25, 0]) / [0.5, 1, 2]
    scaled[~expected.mask] = 0
    np.testing.assert_allclose(found.inputs, scaled, atol=1e-6)


def test_without_a_mask_all_images_are_scaled():
  plain = few_shot_episodes(IMAGES, 2, 1, 1)
  key = jax.random.key(3)
  found, pixels = (
    jax.jit(f)(key).support.inputs
    for f in (standardized(plain, CHANNELS), plain)
  )
  scaled = (np.float64(pixels) - [0.5, 0.25, 0]) / [0.5, 1, 2]
  np.testing.assert_allclose(found, scaled, atol=1e-6)


def test_bytes_are_stored_and_no_constants():
  family = standardized(few_shot_episodes(IMAGES, 2, 1, 1), CHANNELS)
  (stored,) = jax.tree.leaves(family)
  assert stored.dtype == np.uint8 and stored.size == IMAGES.size


def test_restored_pixels_are_those_before():
  pixels = np.random.default_rng(2).random((4, 2, 2, 3), np.float32)
  there = CHANNELS.standardize(pixels)
  np.testing.assert_allclose(CHANNELS.restore(there), pixels, atol=1e-6)


def test_other_channels_are_refused():
  grey = few_shot_episodes(IMAGES[..., :1], 2, 1, 1)
  with pytest.raises(ValueError, match="^channels: 3 of them given, must be 1"):
    standardized(grey, CHANNELS)
