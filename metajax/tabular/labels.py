"""Classes of rows from continuous scores."""

import jax
import jax.numpy as jnp

from metajax.tabular.draws import between, normals, uniforms, whole
from metajax.types import Array, PRNGKey


def classes_of(rng: PRNGKey, scores: Array, num_classes: Array) -> Array:
  """Makes classes of scores, in one of two ways.

  Either the first score is cut at the values of random rows, and the intervals
  are given to the classes: one to each, or several at random. Or the class is
  that of the largest score plus an offset. Both have noise, and both give
  classes of different sizes.

  Args:
    rng: the key.
    scores: `[rows, most classes]`, standardised.
    num_classes: the number of classes of the task, 2 or more.

  Returns:
    `[rows]` integers below `num_classes`.
  """
  rows, most = scores.shape
  uniform_key, normal_key = jax.random.split(rng)
  row, owner, scalars = uniforms(uniform_key, (most - 1,), (most,), (3,))
  errors, offsets = normals(normal_key, (rows, most), (most,))
  scores = scores + jnp.exp(between(scalars[0], -6.0, -0.7)) * errors
  used = jnp.arange(most) < num_classes
  largest = jnp.argmax(
    jnp.where(used, scores + 0.5 * offsets, -jnp.inf), axis=-1
  )
  several = jnp.minimum(2 * num_classes, most)
  intervals = jnp.where(scalars[1] < 0.2, several, num_classes)
  cuts = scores[whole(row, 0, rows - 1), 0]
  cuts = jnp.where(jnp.arange(most - 1) < intervals - 1, cuts, jnp.inf)
  interval = (scores[:, :1] > cuts).sum(-1)
  # The first intervals go to a class each, so that none is left out.
  given = jnp.where(used, jnp.arange(most), whole(owner, 0, num_classes - 1))
  return jnp.where(scalars[2] < 0.5, given[interval], largest)


def renumbered(u: Array, labels: Array, num_classes: Array) -> Array:
  """Renumbers the classes below `num_classes` in the order of `u` `[most]`."""
  order = jnp.where(jnp.arange(len(u)) < num_classes, u, 2.0)
  return jnp.argsort(jnp.argsort(order))[labels]
