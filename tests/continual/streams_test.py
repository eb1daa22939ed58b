"""Streams of images from which turns and orders can be read off exactly."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from scipy import stats

from metajax.continual import (
  ContinualLearner,
  Stream,
  accuracies_over_stream,
  permuted,
  rotated,
)
from metajax.continual.learners import Learned
from metajax.continual.streams import _turn
from metajax.types import Batch

# Chance alone would fail a test this seldom, and the keys are fixed.
SIGNIFICANCE = 1e-3
KEYS = jax.random.split(jax.random.key(0), 300)
TRAIN, TEST, TASKS, EXAMPLES = 6, 3, 3, 4
turn = jax.jit(_turn)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _ramps(number):
  """Images that rise to the right: image i by i + 1 a pixel; its class is i.

  Bilinear interpolation of a plane is exact.
  """
  steepness = np.arange(1, number + 1, dtype=np.float32)
  ramp = np.tile(np.arange(5, dtype=np.float32) - 2, (5, 1))
  images = steepness[:, None, None, None] * ramp[None, :, :, None]
  return Batch(jnp.asarray(images), jnp.arange(number))


def _slopes(images):
  """How steeply `[..., 5, 5, 1]` rise at the middle: (to the right, down)."""
  images = np.asarray(images)[..., 0]
  middle = images[..., 2, 2]
  return images[..., 2, 3] - middle, images[..., 3, 2] - middle


def _numbered(number):
  """Pixel p of image i, 2 x 2, has the value 4 i + p; its class is i."""
  images = jnp.arange(number * 4).reshape(number, 2, 2, 1)
  return Batch(images, jnp.arange(number))


@functools.cache
def _streams(make, data):
  """A stream for each key."""
  make = functools.partial(make, data(TRAIN), data(TEST), TASKS, EXAMPLES)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(make))(KEYS))


# --- Turns of an image. ---


@pytest.mark.parametrize("size", [5, 6])
def test_quarter_turns_are_clockwise_and_exact(size, float64):
  """About the middle, be it a pixel or between pixels."""
  image = np.random.default_rng(0).normal(size=(size, size, 1))
  for quarters in (0, 1, 2, 3):
    found = turn(image, quarters * np.pi / 2)
    assert found.dtype == jnp.float64
    expected = np.rot90(image, -quarters)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_turns_between_are_those_of_scipy(float64):
  """The margin is black: scipy does not interpolate across the border."""
  image = np.pad(np.random.default_rng(0).random((4, 6)), 1)
  for degrees in (10, 75, 130, 179):
    found = turn(image[..., None], np.deg2rad(degrees))
    # scipy turns to the left.
    expected = scipy.ndimage.rotate(image, -degrees, reshape=False, order=1)
    assert np.any(expected[1:-1, 1:-1] != image[1:-1, 1:-1])
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-9, atol=1e-12)


# --- Streams. ---


def test_each_task_turns_all_its_images_by_one_angle_of_its_part():
  """Parts of 180 degrees; within its part the angle is uniform."""
  # Some roundings, of places that are smaller than 4.
  error = 16 * np.finfo(np.float32).eps
  angles = []
  for part in _streams(rotated, _ramps):
    assert part.inputs.shape == (*part.targets.shape, 5, 5, 1)
    right, down = _slopes(part.inputs)
    angles.append(np.arctan2(down, right))
    # Classes stay with their images, to which nothing else was done.
    np.testing.assert_allclose(
      np.hypot(right, down), part.targets + 1, rtol=error
    )
  angles = np.concatenate(angles, axis=-1)
  assert np.ptp(angles, axis=-1).max() < error
  offsets = angles[..., 0] * TASKS / np.pi - np.arange(TASKS)
  assert -error < offsets.min() and offsets.max() < 1 + error
  assert stats.kstest(offsets.ravel(), "uniform").pvalue > SIGNIFICANCE
  correlation = stats.pearsonr(offsets[:, 0], offsets[:, 1])
  assert correlation.pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
  "make, data", [(rotated, _ramps), (permuted, _numbered)]
)
def test_a_task_has_some_training_images_once_and_all_test_images(make, data):
  streams = _streams(make, data)
  np.testing.assert_array_equal(
    streams.test.targets,
    np.broadcast_to(np.arange(TEST), (len(KEYS), TASKS, TEST)),
  )
  chosen = streams.train.targets
  assert chosen.shape == (len(KEYS), TASKS, EXAMPLES)
  assert np.diff(np.sort(chosen), axis=-1).min() > 0
  assert chosen.min() == 0 and chosen.max() == TRAIN - 1
  # Uniform in each task, and what the second begins with does not depend on
  # what the first begins with: 6 x 6 pairs.
  pairs = chosen[:, 0, 0] * TRAIN + chosen[:, 1, 0]
  counts = np.bincount(pairs, minlength=TRAIN**2)
  assert len(counts) == TRAIN**2
  assert stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_each_task_permutes_the_pixels_of_all_its_images_in_one_order():
  """Which is uniform, and does not depend on that of another task."""
  orders = []
  for part in _streams(permuted, _numbered):
    assert part.inputs.shape == (*part.targets.shape, 2, 2, 1)
    images, pixels = np.divmod(part.inputs.reshape(*part.targets.shape, 4), 4)
    # All pixels are of the image whose class it is.
    assert (images == part.targets[..., None]).all()
    orders.append(pixels)
  orders = np.concatenate(orders, axis=2)
  assert (np.sort(orders) == np.arange(4)).all()
  assert (orders == orders[:, :, :1]).all()
  orders = orders[:, :, 0]
  _, counts = np.unique(orders.reshape(-1, 4), axis=0, return_counts=True)
  # 24 orders, and more than 30 times each of them is expected.
  assert len(counts) == 24
  assert stats.chisquare(counts).pvalue > SIGNIFICANCE
  same = (orders[:, 0] == orders[:, 1]).all(axis=-1)
  chance = stats.binomtest(int(same.sum()), len(same), 1 / 24)
  assert chance.pvalue > SIGNIFICANCE


@pytest.mark.parametrize("make", [rotated, permuted])
@pytest.mark.parametrize(
  "num_tasks, num_examples, message",
  [
    (0, 4, "num_tasks=0: must be 1 or more"),
    (-3, 4, "num_tasks=-3: must be 1 or more"),
    (2, 0, "num_examples=0: must be from 1 to 6"),
    (2, 7, "num_examples=7: must be from 1 to 6"),
  ],
)
def test_no_tasks_and_too_few_images_are_refused(
  make, num_tasks, num_examples, message
):
  with pytest.raises(ValueError, match=f"^{message}"):
    make(_ramps(TRAIN), _ramps(TEST), num_tasks, num_examples, KEYS[0])


@pytest.mark.parametrize("make", [rotated, permuted])
def test_images_with_a_mask_are_refused(make):
  """It was dropped, and padding was learned as if it were real."""
  images = _ramps(TRAIN)
  masked = images._replace(mask=jnp.arange(TRAIN) > 0)
  for train, test, name in (
    (masked, images, "train"),
    (images, masked, "test"),
  ):
    with pytest.raises(ValueError, match=f"^{name}: has a mask"):
      make(train, test, TASKS, EXAMPLES, KEYS[0])


# --- What is known after each task. ---


def test_accuracies_are_over_real_test_images_only():
  learner = ContinualLearner(
    lambda params, example: Learned(params, ()),
    lambda learned, example, rng: learned,
    lambda learned, examples: learned,
  )
  train = Batch(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int))
  test = Batch(jnp.eye(2)[None, [0, 1, 0, 1]], jnp.array([[0, 1, 1, 0]]))
  test = test._replace(mask=jnp.array([[True, True, True, False]]))
  found = accuracies_over_stream(
    learner,
    SimpleNamespace(apply=lambda params, inputs: inputs),
    jnp.zeros(()),
    Stream(train, test),
    KEYS[0],
  )
  np.testing.assert_allclose(found, [[2 / 3]], rtol=1e-6)


def test_accuracies_are_those_after_each_task_on_each_task():
  """A learner that knows but what it saw, in order, and when tasks ended.

  Its parameters are a number that is doubled whenever something comes, and to
  which that is added: an example's input, or the product of a task's inputs at
  its end. So many test examples are right as the number and the task say.
  """
  tasks, length, num_test = 3, 2, 12
  inputs = np.array([[1, 2], [5, 3], [4, 9]])
  keys_seen = []

  def note(key):
    keys_seen.append(tuple(np.asarray(key).tolist()))

  def observe(learned, example, rng):
    jax.debug.callback(note, jax.random.key_data(rng))
    return Learned(2 * learned.params + example.inputs, learned.memory + 1)

  def end_task(learned, examples):
    assert examples.inputs.shape == examples.targets.shape == (length,)
    params = 2 * learned.params + examples.inputs.prod()
    return Learned(params, learned.memory)

  def predict(params, test_inputs):
    task, place = test_inputs.T
    right = place < (params + task) % (num_test + 1)
    return jax.nn.one_hot(jnp.where(right, 2, 0), 3)

  test_inputs = np.stack(
    np.broadcast_arrays(np.arange(tasks)[:, None], np.arange(num_test)), -1
  )
  stream = Stream(
    Batch(jnp.asarray(inputs), jnp.zeros((tasks, length), jnp.int32)),
    Batch(jnp.asarray(test_inputs), jnp.full((tasks, num_test), 2)),
  )
  learner = ContinualLearner(
    # Begins with what it is given, and with the shapes of one example.
    lambda params, example: Learned(
      params + example.inputs.ndim + example.targets.ndim, jnp.int32(0)
    ),
    observe,
    end_task,
  )
  found = accuracies_over_stream(
    learner, SimpleNamespace(apply=predict), jnp.int32(6), stream, KEYS[0]
  )
  jax.effects_barrier()

  expected, number = [], 6
  for task in inputs.tolist():
    for x in task:
      number = 2 * number + x
    number = 2 * number + task[0] * task[1]
    expected.append(
      [(number + j) % (num_test + 1) / num_test for j in range(tasks)]
    )
  # No two rows and no two columns are alike.
  assert len(np.unique(expected, axis=0)) == tasks
  assert len(np.unique(expected, axis=1).T) == tasks
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # Each example comes with a key of its own.
  assert len(keys_seen) == len(set(keys_seen)) == tasks * length


@pytest.mark.slow
def test_images_that_numpy_holds_make_the_same_streams():
  images = np.arange(36, dtype=np.float32).reshape(4, 3, 3, 1)
  batch = Batch(images, np.arange(4))
  held = jax.tree.map(jnp.asarray, batch)
  for make in (permuted, rotated):
    found = make(batch, batch, 2, 3, KEYS[0])
    expected = make(held, held, 2, 3, KEYS[0])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_each_channel_turns_alone():
  draw = np.random.default_rng(0)
  image = jnp.asarray(draw.normal(size=(5, 5, 3)), jnp.float32)
  found = turn(image, 0.4)
  assert found.shape == image.shape
  for i in range(3):
    alone = turn(image[..., i : i + 1], 0.4)
    np.testing.assert_allclose(found[..., i : i + 1], alone, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 16), (6, 4, 4, 1, 1)])
def test_images_of_other_axes_cannot_turn(shape):
  images = Batch(jnp.ones(shape), jnp.zeros(6, int))
  with pytest.raises(ValueError, match="^train: inputs of .* cannot turn"):
    rotated(images, images, 2, 3, KEYS[0])
