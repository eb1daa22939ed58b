"""What a query of a transformer attends to, layer by layer."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.context.attention import KeysValues, attention_weights, block
from metajax.context.dense import dense, mlp
from metajax.context.objectives import vectors
from metajax.types import Array, Params


def attended(task_params: Params, inputs: Any) -> Array:
  """Returns the weights with which queries attend to the support.

  ::

    w_lhij = softmax_j(q_lhi . k_lhj / sqrt(c))

  Args:
    task_params: from `adapt` of `tnp_d` or `prior_fitted`.
    inputs: of m queries, as `predict` takes them.

  Returns:
    `[layers, heads, m, n]`. The weights of a query sum to 1 over the n support
    points in each layer and head, and are 0 for padding.

  Raises:
    ValueError: for the task parameters of another learner.
  """
  read = isinstance(task_params, dict) and {*task_params} == {"params", "cache"}
  if not read or "embed" not in task_params["params"]:
    raise ValueError(
      "task_params: must be those of tnp_d or prior_fitted, whose queries "
      "attend to the support."
    )
  params, cache = task_params["params"], task_params["cache"]
  heads = cache.layers.keys.shape[-2]
  x = vectors(inputs)
  num_targets = params["embed"][0]["kernel"].shape[0] - x.shape[1]
  unknown = jnp.zeros((len(x), num_targets), x.dtype)
  tokens = mlp(params["embed"], jnp.concatenate([x, unknown], axis=1))

  def layer(x: Array, inputs: tuple[Params, KeysValues]) -> tuple[Array, Array]:
    weights, memory = inputs
    queries = dense(weights["queries"], x).reshape(len(x), heads, -1)
    found = attention_weights(queries, memory, cache.mask)
    return block(weights, x, memory, cache.mask, heads=heads), found

  return jax.lax.scan(layer, tokens, (params["blocks"], cache.layers))[1]
