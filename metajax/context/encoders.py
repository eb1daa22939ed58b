"""Encoders of sets of labelled points, for neural processes."""

import jax
import jax.numpy as jnp

from metajax.context.attention import KeysValues, block, init_block, memorize
from metajax.context.dense import init_mlp, mlp
from metajax.types import Array, Params, PRNGKey

HEADS = 8


def init_pool(
  rng: PRNGKey,
  num_inputs: int,
  width: int,
  num_outputs: int,
  attends: bool,
) -> Params:
  """Draws the parameters of `pool`.

  Args:
    rng: the key.
    num_inputs: numbers of a point, of its input and its label.
    width: width of all layers.
    num_outputs: numbers of the summary.
    attends: whether the points attend to each other before they are averaged.
  """
  each_key, block_key, whole_key = jax.random.split(rng, 3)
  depth = 2 if attends else 4
  params = {
    "each": init_mlp(each_key, [num_inputs, *[width] * depth]),
    "whole": init_mlp(whole_key, [width, width, num_outputs]),
  }
  if attends:
    params["block"] = init_block(block_key, width, width)
  return params


def pool(params: Params, points: Array, mask: Array) -> Array:
  """Summarises a set by the mean of its encoded points.

  ::

    r = g(1/n sum_i h(x_i, y_i))

  The mean of an empty set is zero.

  Args:
    params: from `init_pool`.
    points: `[n, num_inputs]`.
    mask: `[n]`, True for real points.

  Returns:
    `[num_outputs]`.
  """
  hidden = mlp(params["each"], points)
  if "block" in params:
    hidden = _among(params["block"], jax.nn.relu(hidden), mask)
  total = jnp.where(mask[:, None], hidden, 0).sum(0)
  return mlp(params["whole"], total / jnp.maximum(mask.sum(), 1))


def init_cross(
  rng: PRNGKey, num_features: int, num_inputs: int, width: int
) -> Params:
  """Draws the parameters of `remember` and `recall`.

  Args:
    rng: the key.
    num_features: numbers of the input of a point.
    num_inputs: numbers of a point, of its input and its label.
    width: width of all layers.
  """
  keys = jax.random.split(rng, 4)
  return {
    "places": init_mlp(keys[0], [num_features, width, width]),
    "points": init_mlp(keys[1], [num_inputs, width, width]),
    "among": init_block(keys[2], width, width),
    "across": init_block(keys[3], width, width),
  }


def remember(
  params: Params, inputs: Array, points: Array, mask: Array
) -> KeysValues:
  """Encodes a set so that queries can attend to it.

  The values are of the points, which attend to each other. The keys are of
  their inputs alone.

  Args:
    params: from `init_cross`.
    inputs: `[n, num_features]`.
    points: `[n, num_inputs]`.
    mask: `[n]`, True for real points.
  """
  values = _among(params["among"], mlp(params["points"], points), mask)
  keys = mlp(params["places"], inputs)
  return memorize(params["across"], keys, values, HEADS)


def recall(
  params: Params, memory: KeysValues, inputs: Array, mask: Array
) -> Array:
  """Lets each query attend to an encoded set.

  Args:
    params: from `init_cross`.
    memory: from `remember`.
    inputs: `[m, num_features]`, of the queries.
    mask: `[n]`, True for the real points of the set.

  Returns:
    `[m, width]`.
  """
  queries = mlp(params["places"], inputs)
  return block(params["across"], queries, memory, mask, heads=HEADS)


def _among(params: Params, x: Array, mask: Array) -> Array:
  return block(params, x, memorize(params, x, x, HEADS), mask, heads=HEADS)
