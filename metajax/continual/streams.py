"""Streams of tasks, and the accuracy on all tasks along a stream."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from metajax.continual.learners import ContinualLearner, Learned
from metajax.forward import forward
from metajax.losses import accuracy, over_examples
from metajax.numerics import check_counts
from metajax.types import Array, Batch, Model, Params, PRNGKey


class Stream(NamedTuple):
  """A sequence of tasks.

  Attributes:
    train: `[tasks, n, ...]`. The learner sees each example once.
    test: `[tasks, m, ...]`, which measure the accuracy on each task.
  """

  train: Batch
  test: Batch


def rotated(
  train: Batch, test: Batch, num_tasks: int, num_examples: int, rng: PRNGKey
) -> Stream:
  """Builds a stream of rotated images, whose angle grows from task to task.

  Task t rotates images about their centre, with bilinear interpolation. Its
  angle is uniform in [t, t + 1) 180 / `num_tasks` degrees (Lopez-Paz and
  Ranzato 2017, section 5.1). It has `num_examples` of the training images, and
  all test images.

  Args:
    train: images `[n, height, width, channels]` and classes.
    test: as `train`.
    num_tasks: number of tasks of the stream.
    num_examples: number of training images of a task.
    rng: the key of angles and images.

  Raises:
    ValueError: if there are no tasks, or fewer images than examples; if the
      images have a mask or other axes.
  """
  for name, images in (("train", train), ("test", test)):
    if jnp.ndim(images.inputs) != 4:
      raise ValueError(
        f"{name}: inputs of shape {jnp.shape(images.inputs)} cannot turn, must "
        "be images [n, height, width, channels]."
      )

  def turn(images: Array, key: PRNGKey, task: Array) -> Array:
    share = (task + jax.random.uniform(key)) / num_tasks
    return jax.vmap(lambda image: _turn(image, jnp.pi * share))(images)

  return _stream(train, test, turn, num_tasks, num_examples, rng)


def permuted(
  train: Batch, test: Batch, num_tasks: int, num_examples: int, rng: PRNGKey
) -> Stream:
  """Builds a stream in which each task permutes the pixels in its own order.

  Images are `[n, ...]`. The numbers of all channels are pixels here. See
  `rotated` for the arguments and the errors.
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
  """Learns a stream and returns accuracies R `[tasks, tasks]`.

  `R[i, j]` is the accuracy on the test set of task j after learning task i. The
  measures of Riemer et al. (2019, section 5) are:

  - Retained accuracy RA is the mean of the last row.
  - Learning accuracy LA is the mean of the diagonal.
  - Backward transfer and interference is RA - LA.

  Args:
    learner: the algorithm.
    model: predicts logits.
    params: the initial parameters.
    stream: the tasks.
    rng: the key of the learner.

  Raises:
    ValueError: if the model has running statistics, or the stream a mask, that
      the learner cannot use.
  """
  apply = forward(model).apply
  example = jax.tree.map(lambda x: x[0, 0], stream.train)

  def score(params: Params, test: Batch) -> Array:
    logits = apply(params, test.inputs, mask=test.mask)
    return over_examples(accuracy, logits, test.targets, test.mask)

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
  check_counts(num_tasks=num_tasks, num_examples=num_examples)
  for name, images in (("train", train), ("test", test)):
    if images.mask is not None:
      raise ValueError(f"{name}: has a mask; leave the padding out.")
  # A traced index cannot index a numpy array.
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
  """Rotates `[height, width, channels]` about its centre; new pixels are 0."""
  height, width, _ = image.shape
  y = jnp.arange(height)[:, None] - (height - 1) / 2
  x = jnp.arange(width)[None] - (width - 1) / 2
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  places = (
    cos * y - sin * x + (height - 1) / 2,
    sin * y + cos * x + (width - 1) / 2,
  )
  return jax.vmap(
    lambda channel: map_coordinates(channel, list(places), order=1), -1, -1
  )(image)
