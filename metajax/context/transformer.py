"""A transformer that reads tokens once, and is asked many times."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.context.attention import (
  KeysValues,
  before,
  block,
  init_block,
  memorize,
)
from metajax.numerics import check_counts
from metajax.types import Array, Params, PRNGKey

# The most layers of which compiled programs have no loop.
UNROLLED = 8


class Cache(NamedTuple):
  """Keys and values of tokens that were read, at every layer.

  Attributes:
    layers: `KeysValues` of `[layers, n, heads, width / heads]`.
    mask: `[n]` bool, True for real tokens.
  """

  layers: KeysValues
  mask: Array


class Transformer(NamedTuple):
  """Pure functions of a stack of blocks.

  Attributes:
    init: `(rng) -> params`, of which every leaf is `[layers, ...]`.
    read: `(params, tokens [n, width], mask=None, causal=False, past=None) ->
      (tokens [n, width], Cache)`. Each token attends to all real tokens; with
      `causal`, to itself and those before it. `past` is a cache of what was
      read before, which the tokens attend to, too, and which is in the result.
    ask: `(params, cache, tokens [m, width], among=None, seen=None) -> tokens
      [m, width]`. Each token attends to the real tokens of the cache; with
      `seen [m, n]`, only where it is True. It attends to the tokens of the same
      call, too, where `among [m, m]` is True. None: it attends to no other, and
      not to itself. The cost is linear in m.
  """

  init: Callable[[PRNGKey], Params]
  read: Callable[..., tuple[Array, Cache]]
  ask: Callable[..., Array]


def transformer(
  *,
  width: int = 64,
  hidden: int | None = None,
  layers: int = 6,
  heads: int = 4,
  normed_first: bool = False,
  matched: bool = False,
) -> Transformer:
  """Builds a stack of attention blocks with a cache of keys and values.

  It has no positions: without `causal` it is a function of a set.

  Args:
    width: width of the tokens.
    hidden: units of the dense layer in each block; None: twice the width.
    layers: number of blocks.
    heads: number of heads; must divide the width.
    normed_first: see `attention.block`.
    matched: whether the weights of keys begin equal to those of queries. The
      score of a token and a query is then larger, the more alike they are.

  Raises:
    ValueError: if `heads` does not divide `width`, or a size is less than 1.
  """
  hidden = 2 * width if hidden is None else hidden
  check_counts(width=width, hidden=hidden, layers=layers, heads=heads)
  if width % heads:
    raise ValueError(
      f"width={width}, heads={heads}: heads must divide the width."
    )

  def init(rng: PRNGKey) -> Params:
    keys = jax.random.split(rng, layers)
    blocks = jax.vmap(lambda key: init_block(key, width, hidden))(keys)
    # Copies: a training may donate its parameters, each buffer once.
    alike = {"keys": jax.tree.map(jnp.copy, blocks["queries"])}
    return blocks | alike if matched else blocks

  def run(
    params: Params, tokens: Array, among: Array | None, cache: Cache | None
  ) -> tuple[Array, Any]:
    def layer(x: Array, inputs: tuple) -> tuple[Array, Any]:
      weights, past = inputs
      known, mask = past, None if cache is None else cache.mask
      own = None
      if among is not None:
        y = before(weights, x, normed_first)
        own = memorize(weights, y, y, heads)
        known, mask = own, among
      if among is not None and cache is not None:
        known = jax.tree.map(lambda *z: jnp.concatenate(z), past, own)
        both = [
          jnp.broadcast_to(part, (len(x), part.shape[-1]))
          for part in (cache.mask, among)
        ]
        mask = jnp.concatenate(both, axis=1)
      x = block(weights, x, known, mask, heads=heads, normed_first=normed_first)
      return x, own

    past = None if cache is None else cache.layers
    # A loop of few layers is a fifth slower on CPUs than the layers in a row.
    inputs = params, past
    return jax.lax.scan(layer, tokens, inputs, unroll=min(layers, UNROLLED))

  def read(
    params: Params,
    tokens: Array,
    mask: Array | None = None,
    causal: bool = False,
    past: Cache | None = None,
  ) -> tuple[Array, Cache]:
    mask = jnp.ones(len(tokens), bool) if mask is None else mask
    among = mask
    if causal:
      among = jnp.tril(jnp.broadcast_to(mask, (len(tokens), len(tokens))))
    tokens, known = run(params, tokens, among, past)
    if past is not None:
      join = functools.partial(jnp.concatenate, axis=1)
      known = jax.tree.map(lambda *z: join(z), past.layers, known)
      mask = jnp.concatenate([past.mask, mask])
    return tokens, Cache(known, mask)

  def ask(
    params: Params,
    cache: Cache,
    tokens: Array,
    among: Array | None = None,
    seen: Array | None = None,
  ) -> Array:
    if seen is not None:
      cache = cache._replace(mask=cache.mask & seen)
    return run(params, tokens, among, cache)[0]

  return Transformer(init, read, ask)
