"""Streams of tasks, and how much of them is remembered."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from metajax.continual.learners import ContinualLearner, Learned
from metajax.types import Array, Batch, Model, Params, PRNGKey


class Stream(NamedTuple):
  """Tasks in their order.

  Attributes:
    train: `[tasks, n, ...]`, each example seen once.
    test: `[tasks, m, ...]`, to tell what is known of each task.
  """

  train: Batch
  test: Batch


def rotated(
  train: Batch, test: Batch, num_tasks: int, num_examples: int, rng: PRNGKey
) -> Stream:
  """Makes a stream of images that are turned further in each task.

  Task t turns by an angle uniform in [t, t + 1) 180 / `num_tasks` degrees about
  the middle, with bilinear interpolation (Lopez-Paz and Ranzato 2017, section
  5.1); it has `num_examples` of the training images, and all test images.

  Args:
    train: images `[n, height, width, 1]` and classes.
    test: likewise.
    num_tasks: of the stream.
    num_examples: of a task.
    rng: of angles and images.

  Raises:
    ValueError: if there are no tasks, or fewer images than examples.
  """

  def turn(images: Array, key: PRNGKey, task: Array) -> Array:
    share = (task + jax.random.uniform(key)) / num_tasks
    return jax.vmap(lambda image: _turn(image, jnp.pi * share))(images)

  return _stream(train, test, turn, num_tasks, num_examples, rng)


def permuted(
  train: Batch, test: Batch, num_tasks: int, num_examples: int, rng: PRNGKey
) -> Stream:
  """Makes a stream whose tasks each have an order of the pixels of their own.

  Images are `[n, height, width, 1]`; the rest as in `rotated`.
  """

  def shuffle(images: Array, key: PRNGKey, task: Array) -> Array:
    del task
    flat = images.reshape(len(images), -1)
    order = jax.random.permutation(key, flat.shape[1])
    return flat[:, order].reshape(images.shape)

  return _stream(train, test, shuffle, num_tasks, num_examples, rng)


def accuracies_over_stream(
  learner: ContinualLearner,
  model: Model,
  params: Params,
  stream: Stream,
  rng: PRNGKey,
) -> Array:
  """Learns a stream; returns `[tasks, tasks]` accuracies.

  Row i is after task i, column j on the test of task j. With that R, retained
  accuracy RA is the mean of the last row, learning accuracy LA that of the
  diagonal, and RA - LA is backward transfer and interference (Riemer et al.
  2019, section 5).

  Args:
    learner: an algorithm.
    model: predicts logits.
    params: where it begins.
    stream: the tasks.
    rng: of the learner.
  """
  example = jax.tree.map(lambda x: x[0, 0], stream.train)

  def score(params: Params, test: Batch) -> Array:
    predicted = model.apply(params, test.inputs).argmax(-1)
    return (predicted == test.targets).mean()

  def one_task(
    learned: Learned, task_and_key: tuple[Batch, PRNGKey]
  ) -> tuple[Learned, Array]:
    task, key = task_and_key
    keys = jax.random.split(key, len(task.targets))
    learned, _ = jax.lax.scan(
      lambda state, x: (learner.observe(state, *x), None), learned, (task, keys)
    )
    learned = learner.end_task(learned, task)
    scores = jax.vmap(score, (None, 0))(learned.params, stream.test)
    return learned, scores

  keys = jax.random.split(rng, stream.train.targets.shape[0])
  start = learner.init(params, example)
  _, accuracies = jax.lax.scan(one_task, start, (stream.train, keys))
  return accuracies


def _stream(
  train: Batch,
  test: Batch,
  change: Callable[[Array, PRNGKey, Array], Array],
  num_tasks: int,
  num_examples: int,
  rng: PRNGKey,
) -> Stream:
  if not 1 <= num_examples <= len(train.targets):
    raise ValueError(
      f"num_examples={num_examples}: must be from 1 to {len(train.targets)}, "
      "the training images."
    )
  if num_tasks < 1:
    raise ValueError(f"num_tasks={num_tasks}: must be 1 or more.")
  # Traced indices do not index arrays of numpy.
  train, test = jax.tree.map(jnp.asarray, (train, test))

  def one(task: Array, key: PRNGKey) -> Stream:
    choice_key, change_key = jax.random.split(key)
    chosen = jax.random.permutation(choice_key, len(train.targets))
    chosen = chosen[:num_examples]
    return Stream(
      Batch(
        change(train.inputs[chosen], change_key, task), train.targets[chosen]
      ),
      Batch(change(test.inputs, change_key, task), test.targets),
    )

  return jax.vmap(one)(jnp.arange(num_tasks), jax.random.split(rng, num_tasks))


def _turn(image: Array, angle: Array) -> Array:
  """Turns `[height, width, 1]` about its middle; what comes in is black."""
  height, width, _ = image.shape
  y = jnp.arange(height)[:, None] - (height - 1) / 2
  x = jnp.arange(width)[None] - (width - 1) / 2
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  places = (
    cos * y - sin * x + (height - 1) / 2,
    sin * y + cos * x + (width - 1) / 2,
  )
  return map_coordinates(image[..., 0], list(places), order=1)[..., None]
