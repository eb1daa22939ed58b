"""A tabular prior-fitted network as a meta-learner."""

from collections.abc import Mapping
from typing import Any

import jax

from metajax.batches import only_array, real
from metajax.learners.heads import members_of, without_absent
from metajax.learners.meta_gradients import gradient_of_mean, query_loss
from metajax.losses import cross_entropy
from metajax.numerics import floating
from metajax.tabular.columns import NAME
from metajax.tabular.network import table_transformer
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
)


def tabular_classifier(
  *,
  num_classes: int = 10,
  metrics: Mapping[str, LossFn] | None = None,
  **sizes: int,
) -> MetaLearner:
  """Classifies the rows of a table in one pass, without steps (TabPFN).

  ::

    g = d/dtheta  mean over tables of the prior of
        -1/m sum_i log p_theta(y_i | x_i, support)

  The loss is least for the exact posterior predictive distribution of the
  prior. Inputs are `[n, features]` floats, NaN for a missing value, with any
  number of rows and features. A column without an observed value in the support
  is absent (see `columns.Columns`). Targets are classes below `num_classes`. A
  class that the support lacks has the logit `heads.ABSENT`, which is finite.

  Permuted rows change nothing. Permuted features change nothing if their names
  are permuted with them: `adapt` draws a name for each column, with its key.
  Permuted classes change the result: labels are embedded by what the network
  has learned for each number. Average over names and over permutations of the
  classes to remove both.

  Args:
    num_classes: the most classes.
    metrics: `(logits, targets) -> scalar` functions of the query, reported by
      `meta_grad` beside "loss".
    **sizes: width, hidden, num_layers and heads, see `table_transformer`.

  Returns:
    A `MetaLearner` that predicts logits `[n, num_classes]`. Its task parameters
    have the keys and values of the support, so that `predict` costs the queries
    alone.

  Raises:
    ValueError: if a size is less than 1, or the heads do not divide the width.
      From `adapt`, for classes out of range.

  References:
    Hollmann et al., `TabPFN: A Transformer That Solves Small Tabular
    Classification Problems in a Second <https://arxiv.org/abs/2207.01848>`_,
    2023.
  """
  network = table_transformer(num_classes=num_classes, **sizes)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    _table(inputs)
    return network.init(rng)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    inputs, mask = _table(support.inputs), real(support)
    names = jax.random.normal(rng, (inputs.shape[1], NAME), inputs.dtype)
    labels = members_of(support.targets, mask, num_classes, inputs.dtype)
    return {
      "params": meta_params,
      "memory": network.read(meta_params, inputs, labels, mask, names),
      # NaN, of a label out of range, counts as present.
      "present": (labels != 0).any(0),
    }

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Array:
    del mask
    params, memory = task_params["params"], task_params["memory"]
    logits = network.ask(params, memory, _table(inputs))
    return without_absent(logits, task_params["present"])

  loss = query_loss(adapt, predict, cross_entropy, metrics)
  return MetaLearner(init, adapt, predict, gradient_of_mean(loss))


def _table(inputs: Any) -> Array:
  inputs = only_array(inputs, "inputs", "a tabular classifier")
  if inputs.ndim != 2:
    raise ValueError(
      f"inputs of shape {inputs.shape}: must be [rows, features]."
    )
  return floating(inputs)
