"""Prior-fitted networks: the set transformer with a bar distribution."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax.context.bars import Bars
from metajax.context.dense import mlp
from metajax.context.objectives import maximum_likelihood
from metajax.context.transformer_process import reader, with_head
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
)


def prior_fitted(
  edges: ArrayLike,
  *,
  num_outputs: int = 1,
  metrics: Mapping[str, LossFn] | None = None,
  **sizes: Any,
) -> MetaLearner:
  """Approximates the posterior of the tasks' prior, of any shape (PFN).

  ::

    g = d/dtheta  mean over tasks of the prior of  -log-likelihood of the query

  The loss is least for the exact posterior predictive distribution of the
  prior. The network is that of `tnp_d`; it predicts the probabilities of bars.

  Args:
    edges: `[B + 1]`, of the bars, see `bars.quantile_edges`.
    num_outputs: d, numbers of a target.
    metrics: see `tnp_d`.
    **sizes: see `tnp_d`.

  Returns:
    A `MetaLearner` that predicts `Bars` of `[n, d]`.

  Raises:
    ValueError: if there are less than 4 edges, or they do not increase.

  References:
    Müller et al., `Transformers Can Do Bayesian Inference
    <https://arxiv.org/abs/2112.10510>`_, 2022, sections 3 and 4.
  """
  known = np.asarray(edges)
  if known.ndim != 1 or len(known) < 4 or not np.all(np.diff(known) > 0):
    raise ValueError(
      f"edges of shape {known.shape}: must be 4 or more increasing numbers; "
      "quantile_edges makes them."
    )
  network = reader(num_outputs, **sizes)
  num_bars = len(known) - 1

  def init(rng: PRNGKey, inputs: Any) -> Params:
    return with_head(network, rng, inputs, num_bars * num_outputs)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    return {"params": meta_params, "cache": network.read(meta_params, support)}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Bars:
    del mask
    params, cache = task_params["params"], task_params["cache"]
    tokens = network.embed(params, inputs, None)
    outputs = mlp(params["head"], network.ask(params, cache, tokens))
    n = len(tokens)
    logits = outputs.reshape(n, num_outputs, num_bars)
    same = jnp.broadcast_to(jnp.asarray(known, logits.dtype), (n, num_bars + 1))
    return Bars(logits, same)

  return maximum_likelihood(
    init, adapt, predict, metrics, num_outputs=num_outputs
  )
