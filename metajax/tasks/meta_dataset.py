"""Tasks of varying ways and unequal shots, drawn as in Meta-Dataset."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax.tasks.drawing import (
  Classes,
  pixels,
  sample_distinct,
  zero_padding,
)
from metajax.tasks.few_shot import labelled_episodes
from metajax.types import Array, Batch, Episode, PRNGKey, TaskFamily


class Limits(NamedTuple):
  """The limits of Meta-Dataset's sampling.

  Attributes:
    least_ways: fewest classes of a task.
    most_ways: most classes of a task; the number of all classes, if smaller.
    most_query_shots: most query examples of each class.
    most_of_class: most examples of a class that count towards the size of the
      support set.
    most_support: most examples of a support set.
  """

  least_ways: int = 5
  most_ways: int = 50
  most_query_shots: int = 10
  most_of_class: int = 100
  most_support: int = 500


PAPER = Limits()


def meta_dataset_episodes(
  inputs: Any, labels: ArrayLike, limits: Limits = PAPER
) -> TaskFamily:
  """Tasks of random ways, shots and balance.

  A task has w ~ U{least_ways, ..., most_ways} classes of sizes n_c. Each class
  has the same number of queries, q. The shots k_c differ between classes::

    q   = min(most_query_shots, floor(min_c n_c / 2))
    s   = min(most_support, sum_c ceil(b min(most_of_class, n_c - q))),
    b   ~ U(0, 1]
    r_c = exp(a_c) n_c / sum_i exp(a_i) n_i,   a_c ~ U[log 0.5, log 2]
    k_c = min(floor(r_c (s - w)) + 1, n_c - q)

  The arrays of all episodes have the size of the largest task, and masks.
  Masked examples are zero.

  Args:
    inputs: numpy or jax array `[n, ...]`, or a tree of such arrays.
    labels: `[n]`, the class of each example: any integers or strings.
    limits: the numbers above.

  Returns:
    A task family like that of `labelled_episodes`. The support has room for
    `most_support` examples, or for the largest support of any task, if that is
    smaller. The query has room for `most_ways * most_query_shots` examples.
    Real examples come first, in random order.

  Raises:
    ValueError: if there are too few classes or examples, or for other limits.

  References:
    Triantafillou et al., `Meta-Dataset: A Dataset of Datasets for Learning to
    Learn from Few Examples <https://arxiv.org/abs/1903.03096>`_, 2019, section
    3.2 and appendix.
  """
  _check(limits)
  # This call checks the arrays and sorts the examples by class.
  plain: Any = labelled_episodes(inputs, labels, 2, 1, 1)
  data = plain.args[0]
  sizes = np.asarray(data.counts)
  ways = min(limits.most_ways, len(sizes))
  if ways < limits.least_ways:
    raise ValueError(
      f"limits: least_ways={limits.least_ways} is more than the {ways} classes "
      "that there are, or than most_ways."
    )
  # The most examples that a class can give, for the largest classes of a task.
  given = np.sort(np.minimum(limits.most_of_class, sizes - 1))[-ways:]
  room = min(limits.most_support, int(given.sum()))
  sample = functools.partial(
    _sample,
    limits=limits,
    num_classes=len(sizes),
    ways=ways,
    room=room,
    largest=int(sizes.max()),
  )
  return jax.tree_util.Partial(sample, data)


def shots_of(
  sizes: Array, real: Array, limits: Limits, rng: PRNGKey
) -> tuple[Array, Array]:
  """Draws the shots of each class, k_c, and the queries of each, q.

  Args:
    sizes: int `[ways]`, examples of each class.
    real: bool `[ways]`, which classes belong to the task.
    limits: see `meta_dataset_episodes`.
    rng: the key.

  Returns:
    The shots, int `[ways]`, and the queries, an int scalar. Classes that are
    not real have zero shots.
  """
  size_key, balance_key = jax.random.split(rng)
  fewest = jnp.min(jnp.where(real, sizes, jnp.iinfo(sizes.dtype).max))
  queries = jnp.minimum(limits.most_query_shots, fewest // 2)
  left = sizes - queries
  # Uniform in (0, 1], while `uniform` draws from [0, 1).
  part = 1 - jax.random.uniform(size_key)
  counted = jnp.ceil(part * jnp.minimum(limits.most_of_class, left))
  support = jnp.sum(jnp.where(real, counted, 0)).astype(sizes.dtype)
  support = jnp.minimum(support, limits.most_support)
  bounds = jnp.log(jnp.array([0.5, 2.0]))
  balance = jax.random.uniform(
    balance_key, sizes.shape, minval=bounds[0], maxval=bounds[1]
  )
  weights = jnp.where(real, jnp.exp(balance) * sizes, 0)
  weights = weights / weights.sum()
  spare = support - real.sum()
  shots = jnp.floor(weights * spare).astype(sizes.dtype) + 1
  return jnp.where(real, jnp.minimum(shots, left), 0), queries


def _check(limits: Limits) -> None:
  if (
    not all(isinstance(x, int | np.integer) and x >= 1 for x in limits)
    or not 2 <= limits.least_ways <= limits.most_ways <= limits.most_support
  ):
    raise ValueError(
      f"{limits}: must be integers of 1 or more, with 2 <= least_ways <= "
      "most_ways <= most_support."
    )


def _sample(
  data: Classes,
  rng: PRNGKey,
  *,
  limits: Limits,
  num_classes: int,
  ways: int,
  room: int,
  largest: int,
) -> Episode:
  keys = jax.random.split(rng, 6)
  classes = sample_distinct(keys[0], num_classes, ways)
  sizes, starts = (jnp.asarray(x)[classes] for x in (data.counts, data.starts))
  count = jax.random.randint(keys[1], (), limits.least_ways, ways + 1)
  real = jnp.arange(ways) < count
  shots, queries = shots_of(sizes, real, limits, keys[2])
  # A random order of each class's examples. Numbers beyond its size come last.
  order = jnp.argsort(
    jax.random.uniform(keys[3], (ways, largest))
    + (jnp.arange(largest) >= sizes[:, None]),
    axis=-1,
  )

  def batch(counts: Array, before: Array, size: int, key: PRNGKey) -> Batch:
    """Takes `counts` examples of each class, after its first `before` ones."""
    ends = jnp.cumsum(counts)
    mask = jnp.arange(size) < ends[-1]
    row = jnp.argsort(jax.random.uniform(key, (size,)) + ~mask)
    label = jnp.minimum(jnp.searchsorted(ends, row, side="right"), ways - 1)
    place = before[label] + row - (ends - counts)[label]
    index = starts[label] + order[label, jnp.where(mask, place, 0)]
    rows = jax.tree.map(lambda x: pixels(x[index]), data.examples)
    full = Batch(rows, label.astype(jnp.int32), mask)
    return jax.tree.map(functools.partial(zero_padding, mask), full)

  return Episode(
    batch(shots, jnp.zeros_like(shots), room, keys[4]),
    batch(real * queries, shots, ways * limits.most_query_shots, keys[5]),
  )
