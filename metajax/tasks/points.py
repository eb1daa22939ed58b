"""Divides the points of a task into support and query, of varying numbers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.tasks.form import Number, checked_bounds
from metajax.types import Array, Batch, Episode, PRNGKey


class Division(NamedTuple):
  """How many points of a task are its support, and how many its query.

  Attributes:
    shots: least and most support points.
    query_shots: least and most query points.
    num_points: most points of a task, both together.
  """

  shots: tuple[int, int]
  query_shots: tuple[int, int]
  num_points: int


def division(
  shots: Number, query_shots: Number, max_points: int | None = None
) -> Division:
  """Checks the numbers of points.

  Args:
    shots: number of support points, or the least and most.
    query_shots: number of query points, or the least and most.
    max_points: most points of a task; None: the most of both together.

  Raises:
    ValueError: if a number is too small, or `max_points` leaves too few points
      for the query.
  """
  few = checked_bounds("shots", shots, 0)
  asked = checked_bounds("query_shots", query_shots, 1)
  total = few[1] + asked[1] if max_points is None else max_points
  if total < few[1] + asked[0]:
    raise ValueError(
      f"max_points={total}: must be {few[1] + asked[0]} or more, the most "
      "shots and the fewest query_shots."
    )
  return Division(few, asked, min(total, few[1] + asked[1]))


def divide(
  rng: PRNGKey, inputs: Any, targets: Any, division: Division
) -> Episode:
  """Takes the first points as support, and those after them as query.

  Numbers that vary are drawn uniformly. First that of the support is drawn,
  and then that of the query, of which no more are drawn than points are left.

  Args:
    rng: the key of the numbers.
    inputs: a tree of arrays `[num_points, ...]`, points in random order.
    targets: a tree of arrays `[num_points, ...]`.
    division: the numbers.

  Returns:
    An episode with arrays of the largest numbers. A batch whose number varies
    has a mask, and zeros as padding.
  """
  shots, query_shots, total = division
  support_key, query_key = jax.random.split(rng)
  count = jax.random.randint(support_key, (), shots[0], shots[1] + 1)
  most = jnp.minimum(query_shots[1], total - count)
  asked = jax.random.randint(query_key, (), query_shots[0], most + 1)
  query_varies = query_shots[0] < query_shots[1]

  def batch(start: Array | int, size: int, number: Array | None) -> Batch:
    place = jnp.arange(size)
    points = Batch(inputs, targets)
    points = jax.tree.map(lambda x: x[start + place], points)
    if number is None:
      return points
    mask = place < number
    points = jax.tree.map(lambda x: _only(x, mask), points)
    return points._replace(mask=mask)

  return Episode(
    batch(0, shots[1], count if shots[0] < shots[1] else None),
    batch(count, query_shots[1], asked if query_varies else None),
  )


def _only(x: Array, mask: Array) -> Array:
  return jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
