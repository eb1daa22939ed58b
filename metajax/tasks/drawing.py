"""Draws episodes from examples that lie on the device, class by class."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.tasks.form import Form
from metajax.types import Array, Batch, Episode, PRNGKey


class Classes(NamedTuple):
  """Examples by class.

  Attributes:
    examples: a tree of arrays `[classes, examples, ...]`. With `starts`, a tree
      of arrays `[n, ...]` in which the examples of a class are consecutive.
    counts: int32 `[classes]`, the number of examples of each class; None: the
      size of the axis of examples.
    starts: int32 `[classes]`, the first row of each class, or None.
  """

  examples: Any
  counts: Array | None = None
  starts: Array | None = None


class Places(NamedTuple):
  """Examples that are drawn, before they are read.

  Attributes:
    rows: int32 `[n]`, their rows in arrays that have all examples, class by
      class.
    turns: int32 `[n]`, their rotations in units of 90 degrees.
  """

  rows: Array
  turns: Array


def episode_of(
  data: Classes,
  form: Form,
  classes: Array,
  turns: Array,
  keys: Sequence[PRNGKey],
  size_key: PRNGKey,
) -> Episode:
  """Draws the examples of an episode from its classes.

  The arguments are those of `places_of`.
  """

  def taken(batch: Batch) -> Batch:
    rows = jax.tree.map(lambda x: x[batch.inputs.rows], examples)
    return filled(batch, rows, form.num_rotations)

  examples = data.examples
  if data.starts is None:
    examples = jax.tree.map(
      lambda x: x.reshape(-1, *x.shape[2:]), data.examples
    )
  drawn = places_of(data, form, classes, turns, keys, size_key)
  return Episode(*map(taken, drawn))


def places_of(
  data: Classes,
  form: Form,
  classes: Array,
  turns: Array,
  keys: Sequence[PRNGKey],
  size_key: PRNGKey,
) -> Episode:
  """Draws an episode without its examples: its inputs are `Places`.

  Args:
    data: the sizes and first rows of the classes. The examples are not used.
    form: the form of the episode. Its arrays have the largest size.
    classes: int32 `[ways]`. The pairs of class and turn are all different.
    turns: int32 `[ways]`, the rotation of each class in units of 90 degrees.
    keys: three keys: for the examples, for the order of the support and for the
      order of the query.
    size_key: the key for the numbers of classes and examples, if they vary.
  """
  example_key, support_key, query_key = keys
  ways, shots = len(classes), form.shots[1]
  places = _places(data, form, classes, example_key)
  if form.masked:
    counts = form.most if data.counts is None else data.counts[classes]
    order, real = _sizes(form, counts, size_key)
    places = jnp.take_along_axis(places, order, axis=1)
  else:
    places, real = places[:, : shots + form.query_shots[1]], None
  starts = classes * form.most if data.starts is None else data.starts[classes]
  # `[ways, examples]`: a row for each class, with its support first.
  rows = starts[:, None] + places

  def shuffled(key: PRNGKey, part: slice) -> Batch:
    count = len(range(*part.indices(shots + form.query_shots[1])))
    order = jax.random.permutation(key, ways * count)
    labels, column = order // count, order % count
    inputs = Places(rows[:, part][labels, column], turns[labels])
    mask = None if real is None else real[:, part][labels, column]
    return Batch(inputs, labels.astype(jnp.int32), mask)

  return Episode(
    shuffled(support_key, slice(0, shots)),
    shuffled(query_key, slice(shots, None)),
  )


def filled(batch: Batch, examples: Any, num_rotations: int) -> Batch:
  """Returns a batch of `Places` with the examples in their stead.

  Args:
    batch: `[n]` places.
    examples: the examples at these places, a tree of arrays `[n, ...]`.
    num_rotations: 1, 2 or 4.
  """
  if num_rotations > 1:
    turn = jax.vmap(functools.partial(_rotate, num_rotations))
    examples = jax.tree.map(lambda x: turn(x, batch.inputs.turns), examples)
  full = batch._replace(inputs=jax.tree.map(pixels, examples))
  if batch.mask is None:
    return full
  return jax.tree.map(functools.partial(zero_padding, batch.mask), full)


def sample_distinct(rng: PRNGKey, limit: int, count: int) -> Array:
  """Draws `count` different integers below `limit`, in random order.

  This is Floyd's algorithm. It needs `count` draws and no sort of `limit`
  numbers.
  """
  chex.assert_scalar_in(count, 1, limit)
  draw_key, order_key = jax.random.split(rng)
  tops = jnp.arange(limit - count, limit)
  draws = jax.random.randint(draw_key, (count,), 0, tops + 1)

  def take(index: int, chosen: Array) -> Array:
    # If the draw was chosen before, take its upper end instead. No earlier draw
    # could reach this number.
    seen = jnp.any(chosen == draws[index])
    return chosen.at[index].set(jnp.where(seen, tops[index], draws[index]))

  chosen = jax.lax.fori_loop(0, count, take, jnp.full(count, -1))
  return jax.random.permutation(order_key, chosen)


def _places(data: Classes, form: Form, classes: Array, rng: PRNGKey) -> Array:
  """Returns a random order of each class's examples, int32 `[ways, most]`.

  Numbers beyond the size of a class come last.
  """
  keys = jax.random.split(rng, len(classes))
  if data.counts is None:
    draw = functools.partial(jax.random.permutation, x=form.most)
    return jax.vmap(draw)(keys)
  none = jnp.arange(form.most) >= data.counts[classes][:, None]
  places = jax.vmap(lambda key: jax.random.uniform(key, (form.most,)))(keys)
  return jnp.argsort(places + none, axis=-1)


def _sizes(
  form: Form, counts: Array | int, rng: PRNGKey
) -> tuple[Array, Array]:
  """Draws the numbers of classes and examples of a task.

  A class with too few examples fills the support first, but keeps at least one
  example for the query.

  Returns:
    The places of the support and then of the query in the order of each class,
    int32 `[ways, shots + query_shots]`, and which of these examples are real,
    bool of the same shape.
  """
  ways, shots, query_shots = (
    jax.random.randint(key, (), low, high + 1)
    for key, (low, high) in zip(
      jax.random.split(rng, 3),
      (form.ways, form.shots, form.query_shots),
      strict=True,
    )
  )
  rows, most = jnp.arange(form.ways[1]), form.shots[1]
  shots = jnp.broadcast_to(jnp.minimum(shots, counts - 1), rows.shape)
  query_shots = jnp.minimum(query_shots, counts - shots)
  support, query = jnp.arange(most), jnp.arange(form.query_shots[1])
  real = jnp.concatenate(
    [support < shots[:, None], query < query_shots[:, None]], axis=1
  )
  order = jnp.concatenate(
    [jnp.broadcast_to(support, (*rows.shape, most)), shots[:, None] + query],
    axis=1,
  )
  real &= (rows < ways)[:, None]
  return jnp.where(real, order, 0), real


def pixels(x: Array) -> Array:
  """Converts uint8 to float32 in [0, 1]. Other dtypes stay as they are."""
  return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def zero_padding(mask: Array, x: Array) -> Array:
  """Sets the rows of `[n, ...]` to zero where the mask is False."""
  where = mask.reshape(len(mask), *[1] * (x.ndim - 1))
  return jnp.where(where, x, jnp.zeros((), x.dtype))


def _rotate(num_rotations: int, image: Array, turns: Array) -> Array:
  """Turns `[size, size, channels]` counter-clockwise by `turns` * 90 deg."""
  turned = [jnp.rot90(image, k) for k in range(num_rotations)]
  return jax.lax.select_n(turns, *turned)
