"""Attention within rows and within columns of a table of tokens."""

import jax
import jax.numpy as jnp

from metajax.context.attention import KeysValues, attention
from metajax.context.dense import dense, init_dense, init_norm, norm
from metajax.types import Array, Params, PRNGKey

# Of the first queries and keys of rows: a token's score of itself is about 4.
GAIN = 1.7


def init_layer(rng: PRNGKey, width: int, hidden: int) -> Params:
  """Draws the parameters of a layer, with `hidden` units of its dense layer."""
  cells, rows, first, second = jax.random.split(rng, 4)
  return {
    "cells": _init_attention(cells, width),
    "rows": _alike(_init_attention(rows, width)),
    "hidden": init_dense(first, width, hidden),
    "output": init_dense(second, hidden, width),
    "norm": init_norm(width),
  }


def within_rows(
  params: Params, x: Array, present: Array, heads: int, asked: int
) -> Array:
  """Lets the first cells of each row attend to all cells of that row.

  Args:
    params: of a layer.
    x: tokens `[n, cells, width]`.
    present: `[cells]` bool, the cells that are attended to.
    heads: number of heads.
    asked: how many cells attend; the others are left out of the result.

  Returns:
    `[n, asked, width]`.
  """
  own = params["cells"]
  y = norm(own["norm"], x)
  memory = _memory(own, y, heads)
  queries = _split(dense(own["queries"], y[:, :asked]), heads)
  out = jax.vmap(attention, (0, 0, None))(queries, memory, present)
  return x[:, :asked] + dense(own["merge"], _join(out))


def remember(params: Params, x: Array, heads: int) -> KeysValues:
  """Returns keys and values `[n, cells, heads, c]` for `within_columns`."""
  return _memory(params["rows"], norm(params["rows"]["norm"], x), heads)


def within_columns(
  params: Params, x: Array, memory: KeysValues, mask: Array, heads: int
) -> Array:
  """Lets each cell attend to the support's cells of its column.

  Args:
    params: of a layer.
    x: tokens `[m, cells, width]`.
    memory: of the support, from `remember`, for as many cells.
    mask: `[n]` bool, True for real rows of the support.
    heads: number of heads.
  """
  own = params["rows"]
  queries = _split(dense(own["queries"], norm(own["norm"], x)), heads)
  by_column = jax.vmap(attention, (1, 1, None), 1)
  out = by_column(queries, memory, mask)
  return x + dense(own["merge"], _join(out))


def transform(params: Params, x: Array) -> Array:
  """Transforms each token alone, by a dense layer with hidden units."""
  y = jax.nn.gelu(dense(params["hidden"], norm(params["norm"], x)))
  return x + dense(params["output"], y)


def _init_attention(rng: PRNGKey, width: int) -> Params:
  names = ("queries", "keys", "values", "merge")
  keys = jax.random.split(rng, len(names))
  layers = {
    name: init_dense(key, width, width)
    for name, key in zip(names, keys, strict=True)
  }
  return {**layers, "norm": init_norm(width)}


def _alike(own: Params) -> Params:
  """Lets tokens attend to those like them, before anything is learned.

  Learning begins on a long plateau if queries and keys begin as independent: no
  row then attends to the rows that it resembles.
  """
  kernel = GAIN * own["queries"]["kernel"]
  bias = jnp.zeros(kernel.shape[1])
  queries = {"kernel": kernel, "bias": bias}
  # Copies: a training may donate its parameters, each buffer once.
  return {**own, "queries": queries, "keys": jax.tree.map(jnp.copy, queries)}


def _memory(own: Params, y: Array, heads: int) -> KeysValues:
  keys, values = (_split(dense(own[k], y), heads) for k in ("keys", "values"))
  return KeysValues(keys, values)


def _split(x: Array, heads: int) -> Array:
  return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _join(x: Array) -> Array:
  return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
