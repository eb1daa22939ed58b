"""Transformer neural processes that predict targets in order (TNP-A)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial

from metajax.context.dense import mlp
from metajax.context.joint import Joint
from metajax.context.objectives import maximum_likelihood
from metajax.context.transformer_process import (
  alone,
  normal,
  reader,
  with_head,
)
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
)


def tnp_a(
  *,
  num_outputs: int = 1,
  metrics: Mapping[str, LossFn] | None = None,
  **sizes: Any,
) -> MetaLearner:
  """Predicts each target from the support and the targets before it (TNP-A).

  ::

    p(y | x, support) = prod_i N(y_i; m(x_i, y_<i, support), s(...)^2)
    g = d/dtheta  mean over tasks of  -1/n log p(query targets)

  All factors come from one pass over 2n tokens: n with targets, of which token
  i attends to the support and to tokens 1, ..., i, and n without, of which
  token i attends to the support and to tokens 1, ..., i - 1 with targets.

  The order of the queries matters: the density is that of the given order. Each
  marginal is that of a query which comes first, and needs no samples. Other
  queries have no effect on it.

  Args:
    num_outputs: d, numbers of a target.
    metrics: functions of the query as for `tnp_d`. They score the marginals
      unless they take `mask`, as `joint.log_density` does.
    **sizes: see `tnp_d`.

  Returns:
    A `MetaLearner` that predicts a `Joint`.

  References:
    Nguyen and Grover, `Transformer Neural Processes
    <https://arxiv.org/abs/2207.04179>`_, 2022, section 3.1 and figure 2.
  """
  network = reader(num_outputs, **sizes)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    return with_head(network, rng, inputs, 2 * num_outputs)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    return {"params": meta_params, "cache": network.read(meta_params, support)}

  def conditional(
    task_params: Params, inputs: Any, targets: Array, mask: Array | None
  ) -> Array:
    params, cache = task_params["params"], task_params["cache"]
    targets = targets.reshape(len(targets), num_outputs)
    known = network.embed(params, inputs, targets)
    asked = network.embed(params, inputs, None)
    among = order(len(targets), mask)
    hidden = network.ask(params, cache, jnp.concatenate([known, asked]), among)
    outputs = mlp(params["head"], hidden[len(targets) :])
    return normal(outputs).log_prob(targets)

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Joint:
    del mask
    marginals = alone(network, task_params, inputs)
    return Joint(marginals, Partial(conditional, task_params, inputs))

  return maximum_likelihood(
    init, adapt, predict, metrics, num_outputs=num_outputs
  )


def order(n: int, mask: Array | None = None) -> Array:
  """Returns which of 2n tokens each attends to, `[2n, 2n]` bool.

  The first n tokens have targets, the others have none.

  Args:
    n: number of queries.
    mask: `[n]`, True for real queries; None: all are real.
  """
  earlier = jnp.tril(jnp.ones((n, n), bool), -1)
  no_later = earlier | jnp.eye(n, dtype=bool)
  known = jnp.concatenate([no_later, earlier])
  if mask is not None:
    known &= mask
  return jnp.concatenate([known, jnp.zeros((2 * n, n), bool)], axis=1)
