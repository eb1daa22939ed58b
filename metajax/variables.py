"""Weights and state: what of a tree is trained, and what is carried along."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.numerics import wide
from metajax.types import Metrics, Params, State


def weights(params: Params) -> Params:
  """Returns what is trained: None in the places of `State` nodes and integers.

  Weights are the floating point and complex leaves outside of `State` nodes.
  """
  return jax.tree.map(
    lambda x: x if _is_weight(x) else None, params, is_leaf=_is_state
  )


def states(params: Params) -> Params:
  """Returns the tree with None in the places of all but its `State` nodes."""
  return jax.tree.map(
    lambda x: x if _is_state(x) else None, params, is_leaf=_is_state
  )


def combine(first: Params, *others: Params) -> Params:
  """Fills the places of a tree that are None from others, the earlier first.

  `combine(weights(p), states(q), p)` has the weights and integers of p and the
  state of q. Where the first tree has something, the others are not looked at.
  """

  def choose(*candidates: Any) -> Any:
    return next((x for x in candidates if x is not None), None)

  return jax.tree.map(choose, first, *others, is_leaf=lambda x: x is None)


def map_weights(
  fn: Callable[..., Any], params: Params, *rest: Params
) -> Params:
  """Maps over the weights of trees; all else is that of the first."""
  return combine(jax.tree.map(fn, *map(weights, (params, *rest))), params)


def mean(stack: Any) -> Any:
  """Returns the means over the first axes of a tree, state included.

  Sums are in float32 at least. Integers, such as counts of updates, become the
  rounded mean; of keys the first is taken.
  """

  def of_leaf(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return x[0]
    return narrow(wide(x).mean(0), x.dtype)

  return jax.tree.map(of_leaf, stack)


def mean_metrics(stack: Metrics) -> Metrics:
  """Returns the means over the first axes of metrics, in float32 at least."""
  return jax.tree.map(lambda x: wide(x).mean(0), stack)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
  """Returns a mean in the dtype of its terms."""
  if not jnp.issubdtype(dtype, jnp.inexact):
    x = jnp.round(x)
  return x.astype(dtype)


def _is_state(x: Any) -> bool:
  return isinstance(x, State)


def _is_weight(x: Any) -> bool:
  return not _is_state(x) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
