"""Makes a meta-learner of what encodes a support and what predicts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax.batches import concatenate, flat, num_examples, only_array
from metajax.context.joint import log_density, score
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.numerics import floating
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Params,
  PRNGKey,
)


def maximum_likelihood(
  init: Callable[[PRNGKey, Any], Params],
  adapt: Callable[[Params, Batch, PRNGKey], Params],
  predict: Callable[..., Any],
  metrics: Mapping[str, LossFn] | None = None,
  *,
  num_outputs: int,
  of_support: bool = False,
) -> MetaLearner:
  """Builds a learner that is trained by the likelihood of its predictions.

  ::

    g = d/dtheta  mean over tasks of  -1/n log p(y_1, ..., y_n | support)

  Args:
    init: as in `MetaLearner`.
    adapt: as in `MetaLearner`; it must be differentiable.
    predict: `(task_params, inputs, mask) -> predictive distribution`.
    metrics: `(predictions, targets) -> scalar` functions of the query, reported
      beside "loss".
    num_outputs: numbers of a target.
    of_support: whether the n targets are those of support and query, or those
      of the query alone.

  Returns:
    A `MetaLearner`.
  """
  report = dict(metrics or {})

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    support, query = episode
    task_params = adapt(meta_params, support, rng)
    asked = concatenate(support, query) if of_support else query
    predictions = predict(task_params, asked.inputs, mask=asked.mask)
    targets = numbers(asked, num_outputs)
    loss = -log_density(predictions, targets, asked.mask)
    if of_support:
      n = num_examples(support)
      predictions = jax.tree.map(lambda x: x[n:], predictions)
    scores = {
      name: score(f, predictions, query.targets, query.mask)
      for name, f in report.items()
    }
    return loss, {"loss": loss, **scores}

  return MetaLearner(init, adapt, predict, gradient_of_mean(meta_loss))


def vectors(inputs: Any) -> Array:
  """Returns inputs `[n, ...]` as vectors `[n, features]` of floats."""
  return floating(flat(only_array(inputs, "inputs", "a learner in context")))


def numbers(batch: Batch, num_outputs: int) -> Array:
  """Returns targets as `[n, num_outputs]`.

  Raises:
    ValueError: for classes, for another number of outputs, and for more or
      fewer targets than inputs.
  """
  targets = only_array(batch.targets, "targets", "a learner in context")
  if not jnp.issubdtype(targets.dtype, jnp.floating):
    raise ValueError(
      f"targets: {targets.dtype} given, must be floats; this learner predicts "
      "numbers, not classes."
    )
  targets = flat(targets)
  if len(targets) != num_examples(batch):
    raise ValueError(
      f"targets: {len(targets)} given for {num_examples(batch)} inputs."
    )
  if targets.shape[1] != num_outputs:
    raise ValueError(
      f"targets of {targets.shape[1]} numbers: must be num_outputs="
      f"{num_outputs}; give that many outputs to the learner."
    )
  return targets
