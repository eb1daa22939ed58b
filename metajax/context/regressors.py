"""Least squares and its rivals, as functions of a support and inputs.

Learners in context are compared with them. Each is `(support, inputs
[m, ...]) -> [m, labels]`, obeys masks, and predicts zero of an empty support.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.batches import num_examples, real
from metajax.context.objectives import vectors
from metajax.numerics import check_counts
from metajax.types import Array, Batch

Regressor = Callable[[Batch, Any], Array]


def least_squares(support: Batch, inputs: Any) -> Array:
  """Predicts by the shortest W with the least error: `W = Y^T pinv(X)^T`.

  Args:
    support: n examples.
    inputs: `[m, ...]`.

  Returns:
    `W x`, `[m, labels]`.
  """
  x, y = _real(support)
  return vectors(inputs) @ jnp.linalg.lstsq(x, y)[0]


def nearest_neighbours(count: int = 3) -> Regressor:
  """Builds the mean label of the `count` nearest examples, or of fewer.

  Args:
    count: number of neighbours, 1 or more.

  Raises:
    ValueError: for less than one neighbour.
  """
  check_counts(count=count)

  def predict(support: Batch, inputs: Any) -> Array:
    x, y = _real(support)
    apart = vectors(inputs)[:, None] - x
    distance = jnp.where(
      real(support), jnp.square(apart).sum(-1), jnp.asarray(jnp.inf, x.dtype)
    )
    nearest, which = jax.lax.top_k(-distance, min(count, len(x)))
    found = jnp.isfinite(nearest)[..., None]
    total = jnp.where(found, y[which], 0).sum(1)
    return total / jnp.maximum(found.sum(1), 1)

  return predict


def every_prefix(regressor: Regressor, batch: Batch) -> Array:
  """Predicts each label of a sequence from the examples before it.

  Args:
    regressor: a function of this module, or any other that obeys masks.
    batch: n examples, in order.

  Returns:
    `[n, labels]`; the first is the prediction of an empty support.
  """
  n, mask = num_examples(batch), real(batch)

  def after(i: Array) -> Array:
    support = batch._replace(mask=mask & (jnp.arange(n) < i))
    own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), batch)
    return regressor(support, own.inputs)[0]

  return jax.vmap(after)(jnp.arange(n))


def best_step(
  num_inputs: int, num_examples: int, noise: float = 0.0
) -> tuple[float, float]:
  """Returns the best rate of one gradient step from zero, and its error.

  For `y = w x + noise`, w and x from N(0, I), and the loss
  `1/(2n) sum_i |w x_i - y_i|^2`, the expected error of a new example after one
  step of rate a is::

    d (1 - 2 a + a^2 (1 + (d + 1 + noise^2) / n)) + noise^2

  because `E (X^T X)^2 = n (n + d + 1) I`. It is least for `a = n / (n + d + 1 +
  noise^2)`.

  Args:
    num_inputs: d.
    num_examples: n.
    noise: the standard deviation of the noise.

  Returns:
    `(rate, error)`: that a, and `d (1 - a) + noise^2`.
  """
  n, d = num_examples, num_inputs
  rate = n / (n + d + 1 + noise**2)
  return rate, d * (1 - rate) + noise**2


def _real(support: Batch) -> tuple[Array, Array]:
  """Returns inputs and labels as matrices, in which padding is zero."""
  x, y, mask = vectors(support.inputs), support.targets, real(support)[:, None]
  return jnp.where(mask, x, 0), jnp.where(mask, vectors(y), 0)
