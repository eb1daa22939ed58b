"""Tasks of independent observations without inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.batches import real
from metajax.predictive import Predictive
from metajax.tasks.form import Number
from metajax.tasks.known import KnownTasks
from metajax.tasks.points import divide, division
from metajax.types import Array, Batch, Episode, PRNGKey


class Seen(NamedTuple):
  """What a posterior needs to know of the support: scalars.

  Attributes:
    number: of observations.
    total: their sum.
    squares: the sum of their squared distances from their mean.
  """

  number: Array
  total: Array
  squares: Array


def observations(
  shots: Number,
  query_shots: Number,
  draw: Callable[[PRNGKey], Any],
  observe: Callable[[PRNGKey, Any, int], Array],
  posterior: Callable[[Seen], Predictive],
  given: Callable[[Any], Predictive],
) -> KnownTasks:
  """Builds tasks of sequences of observations, without inputs.

  The inputs are zeros `[n, 1]`. The targets are `[n, 1]`, and are independent
  given the hyper-parameters h of the task.

  Args:
    shots: number of support observations, or the least and most.
    query_shots: number of query observations, or the least and most.
    draw: `(rng) -> h`.
    observe: `(rng, h, n) -> observations [n]`.
    posterior: `(seen) -> Predictive` of one number: scalars.
    given: `(h) -> Predictive` of one number.

  Returns:
    The tasks, with predictions `[n, 1]` that are equal for all n examples.
  """
  points = division(shots, query_shots)

  def sample(rng: PRNGKey, hyper: Any) -> Episode:
    target_key, division_key = jax.random.split(rng)
    y = observe(target_key, hyper, points.num_points)[:, None]
    return divide(division_key, jnp.zeros_like(y), y, points)

  def for_each(one: Predictive, inputs: Array) -> Predictive:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(inputs), 1)), one)

  def after(support: Batch, inputs: Array) -> Predictive:
    mask = real(support)
    y = jnp.where(mask, support.targets[:, 0], 0)
    count = mask.sum().astype(y.dtype)
    center = y.sum() / jnp.maximum(count, 1)
    squares = jnp.where(mask, jnp.square(y - center), 0).sum()
    return for_each(posterior(Seen(count, y.sum(), squares)), inputs)

  def told(hyper: Any, support: Batch, inputs: Array) -> Predictive:
    del support
    return for_each(given(hyper), inputs)

  return KnownTasks(draw, sample, after, told)
