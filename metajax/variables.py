"""Separates the weights of a tree of parameters from its state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.numerics import wide
from metajax.types import Metrics, Params, State


def weights(params: Params) -> Params:
  """Returns the weights, with None in place of `State` nodes and integers.

  Weights are the floating point leaves outside of `State` nodes.

  Raises:
    ValueError: for a complex leaf.
  """
  return jax.tree.map(
    lambda x: x if _is_weight(x) else None, params, is_leaf=_is_state
  )


def states(params: Params) -> Params:
  """Returns the `State` nodes, with None in place of all other leaves."""
  return jax.tree.map(
    lambda x: x if _is_state(x) else None, params, is_leaf=_is_state
  )


def combine(first: Params, *others: Params) -> Params:
  """Fills the None leaves of the first tree from the other trees, in order.

  For example, `combine(weights(p), states(q), p)` has the weights and integers
  of p and the state of q.
  """

  def choose(*candidates: Any) -> Any:
    return next((x for x in candidates if x is not None), None)

  return jax.tree.map(choose, first, *others, is_leaf=lambda x: x is None)


def map_weights(
  fn: Callable[..., Any], params: Params, *rest: Params
) -> Params:
  """Maps a function over the weights; keeps other leaves of the first tree."""
  return combine(jax.tree.map(fn, *map(weights, (params, *rest))), params)


def mean(stack: Any) -> Any:
  """Averages each leaf of a tree, state included, over its first axis.

  Sums are computed in float32 or wider. Integers, such as counts of updates,
  become the rounded mean. Of random keys the first is taken.
  """

  def of_leaf(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return x[0]
    return narrow(wide(x).mean(0), x.dtype)

  return jax.tree.map(of_leaf, stack)


def mean_metrics(stack: Metrics) -> Metrics:
  """Averages metrics over their first axes, in float32 or wider."""
  return jax.tree.map(lambda x: wide(x).mean(0), stack)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
  """Converts a mean to the given dtype, and rounds it for integers."""
  if not jnp.issubdtype(dtype, jnp.inexact):
    x = jnp.round(x)
  return x.astype(dtype)


def _is_state(x: Any) -> bool:
  return isinstance(x, State)


def _is_weight(x: Any) -> bool:
  if _is_state(x):
    return False
  dtype = jnp.result_type(x)
  # An optimizer would ascend in the imaginary part: the derivative that JAX
  # returns is the conjugate of the direction of ascent.
  if jnp.issubdtype(dtype, jnp.complexfloating):
    raise ValueError(
      f"params: a leaf is {dtype}; must be real. Give the real and the "
      "imaginary part as two arrays."
    )
  return jnp.issubdtype(dtype, jnp.floating)
