"""Few-shot classification of images that lie on the device."""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from metajax.types import Array, Batch, Episode, PRNGKey, TaskFamily


def few_shot_episodes(
  images: Array,
  ways: int,
  shots: int,
  query_shots: int,
  num_rotations: int = 1,
  counts: Array | None = None,
) -> TaskFamily:
  """N-way K-shot tasks drawn from a set of classes.

  A task is `ways` different classes in random order, that order being their
  labels, and of each class `shots` support and `query_shots` query examples,
  all different. Support and query are shuffled, each by itself. With rotations,
  a class turned by r * 90 degrees is a class of its own.

  Args:
    images: uint8 `[classes, examples, height, width, channels]`.
    ways: N, classes per task.
    shots: K, support examples per class.
    query_shots: query examples per class.
    num_rotations: 1 (none), 2 (0 and 90 degrees) or 4.
    counts: int `[classes]`, the first examples of each class that are any; None
      if all are.

  Returns:
    A task family that carries the images as an argument. Inputs are float32
    `[n, height, width, channels]` in [0, 1], targets int32 `[n]`.

  Raises:
    ValueError: if the images do not suffice, naming the argument.

  References:
    Vinyals et al., `Matching Networks for One Shot Learning
    <https://arxiv.org/abs/1606.04080>`_, 2016, section 2.2.
  """
  check_images(images, ways, shots, query_shots, num_rotations)
  if counts is not None and (fewest := jnp.min(counts)) < shots + query_shots:
    raise ValueError(
      f"shots={shots} and query_shots={query_shots}: together at most "
      f"{fewest}, the number of examples of the smallest class."
    )
  sample = functools.partial(
    _sample_episode,
    ways=ways,
    shots=shots,
    query_shots=query_shots,
    num_rotations=num_rotations,
  )
  return jax.tree_util.Partial(sample, images, counts)


def _sample_episode(
  images: Array,
  counts: Array | None,
  rng: PRNGKey,
  *,
  ways: int,
  shots: int,
  query_shots: int,
  num_rotations: int,
) -> Episode:
  class_key, *keys = jax.random.split(rng, 4)
  drawn = sample_distinct(class_key, len(images) * num_rotations, ways)
  classes, turns = drawn // num_rotations, drawn % num_rotations
  return episode_of(
    images, classes, turns, keys, shots, query_shots, num_rotations, counts
  )


def episode_of(
  images: Array,
  classes: Array,
  turns: Array,
  keys: Sequence[PRNGKey],
  shots: int,
  query_shots: int,
  num_rotations: int,
  counts: Array | None = None,
) -> Episode:
  """Draws the examples of an episode whose classes are drawn.

  Args:
    images: see `few_shot_episodes`.
    classes: int32 `[ways]`, all different unless the turns are.
    turns: int32 `[ways]`, by how many times 90 degrees each is turned.
    keys: three, of the examples, of the support's order and of the query's.
    shots: support examples per class.
    query_shots: query examples per class.
    num_rotations: turns are below it.
    counts: see `few_shot_episodes`.
  """
  example_key, support_key, query_key = keys
  ways, num_examples = len(classes), images.shape[1]
  example_keys = jax.random.split(example_key, ways)
  if counts is None:
    examples = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(
      example_keys
    )
  else:
    none = jnp.arange(num_examples) >= counts[classes][:, None]
    places = jax.vmap(lambda key: jax.random.uniform(key, (num_examples,)))(
      example_keys
    )
    examples = jnp.argsort(places + none, axis=-1)
  examples = examples[:, : shots + query_shots]
  chosen = images[classes[:, None], examples].astype(jnp.float32) / 255
  chosen = jax.vmap(functools.partial(_rotate, num_rotations))(chosen, turns)

  def shuffled(key: PRNGKey, x: Array) -> Batch:
    order = jax.random.permutation(key, ways * x.shape[1])
    labels = order // x.shape[1]
    return Batch(x[labels, order % x.shape[1]], labels.astype(jnp.int32))

  return Episode(
    shuffled(support_key, chosen[:, :shots]),
    shuffled(query_key, chosen[:, shots:]),
  )


def sample_distinct(rng: PRNGKey, limit: int, count: int) -> Array:
  """Draws `count` different integers below `limit`, in random order.

  Floyd's algorithm: it costs `count` draws and no sort of `limit` numbers.
  """
  chex.assert_scalar_in(count, 1, limit)
  draw_key, order_key = jax.random.split(rng)
  tops = jnp.arange(limit - count, limit)
  draws = jax.random.randint(draw_key, (count,), 0, tops + 1)

  def take(index: int, chosen: Array) -> Array:
    # Where a draw was drawn before, its top cannot have been.
    seen = jnp.any(chosen == draws[index])
    return chosen.at[index].set(jnp.where(seen, tops[index], draws[index]))

  chosen = jax.lax.fori_loop(0, count, take, jnp.full(count, -1))
  return jax.random.permutation(order_key, chosen)


def _rotate(num_rotations: int, images: Array, turns: Array) -> Array:
  """Turns `[n, size, size, channels]` counter-clockwise by `turns` * 90 deg."""
  if num_rotations == 1:
    return images
  turned = [jnp.rot90(images, k, axes=(1, 2)) for k in range(num_rotations)]
  return jax.lax.select_n(turns, *turned)


def check_images(
  images: Array, ways: int, shots: int, query_shots: int, num_rotations: int
) -> None:
  """Raises a `ValueError` if no episode can be drawn from the images."""
  if images.ndim != 5 or images.dtype != jnp.uint8:
    raise ValueError(
      f"images: {images.dtype} {images.shape} given, must be uint8 [classes, "
      "examples, height, width, channels]."
    )
  classes, examples, height, width, _ = images.shape
  if num_rotations not in (1, 2, 4):
    raise ValueError(f"num_rotations={num_rotations}: must be 1, 2 or 4.")
  if num_rotations > 1 and height != width:
    raise ValueError(
      f"num_rotations={num_rotations}: images of {height} x {width} cannot "
      "turn, they must be square."
    )
  for name, value, least in (
    ("ways", ways, 2),
    ("shots", shots, 1),
    ("query_shots", query_shots, 1),
  ):
    if value < least:
      raise ValueError(f"{name}={value}: must be {least} or more.")
  if ways > classes * num_rotations:
    raise ValueError(
      f"ways={ways}: must be at most {classes * num_rotations}, the number of "
      "classes (rotations included)."
    )
  if shots + query_shots > examples:
    raise ValueError(
      f"shots={shots} and query_shots={query_shots}: together at most "
      f"{examples}, the number of examples of a class."
    )
