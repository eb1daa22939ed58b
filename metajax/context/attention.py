"""The block of attention that all learners in context share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.context.dense import dense, init_dense, init_norm, norm
from metajax.models.blocks import in_blocks
from metajax.numerics import wide
from metajax.types import Array, Params, PRNGKey

# The score of a token that is not attended to. It is finite, so that gradients
# are, where a query attends to none.
LEAST = -1e30
# Bytes of the scores of a block on accelerators, which compute many at once. It
# bounds their memory, and has not been tuned.
PARALLEL_BYTES = 2**28


class KeysValues(NamedTuple):
  """What tokens leave behind for others to attend to.

  Attributes:
    keys: `[n, heads, width / heads]`.
    values: `[n, heads, width / heads]`.
  """

  keys: Array
  values: Array


def attention(
  queries: Array, memory: KeysValues, mask: Array | None = None
) -> Array:
  """Computes attention with several heads.

  ::

    out_i = sum_j softmax_j(q_i . k_j / sqrt(c)) v_j

  Many queries are computed in blocks (`models.blocks`), whose scores the
  backward pass computes again. So memory grows linearly with m and n, and not
  with their product.

  Args:
    queries: `[m, heads, c]`.
    memory: keys and values of n tokens.
    mask: bool, broadcast to `[m, n]`: whether query i attends to token j. None:
      all attend to all. A query that attends to no token gets zeros.

  Returns:
    `[m, heads, c]`. It is what `jax.nn.dot_product_attention` computes, in the
    dtype of the arguments. JAX's softmax is in float32 for float64, too.
  """
  n, heads, _ = memory.keys.shape
  if not n:
    return jnp.zeros_like(queries)
  of_query = mask is not None and mask.ndim == 2 and len(mask) == len(queries)

  def attend(part: tuple[Array, Array | None]) -> Array:
    queries, own = part
    weights = attention_weights(queries, memory, own if of_query else mask)
    values = memory.values
    return jnp.einsum("hmn,nhc->mhc", weights.astype(values.dtype), values)

  scores = jax.eval_shape(wide, queries).dtype.itemsize * heads * n
  most = None if jax.default_backend() == "cpu" else PARALLEL_BYTES
  return in_blocks(attend, (queries, mask if of_query else None), scores, most)


def attention_weights(
  queries: Array, memory: KeysValues, mask: Array | None = None
) -> Array:
  """Returns the weights `[heads, m, n]` of `attention`, which see."""
  keys = memory.keys
  scores = wide(jnp.einsum("mhc,nhc->hmn", queries, keys))
  scores = scores * keys.shape[-1] ** -0.5
  if mask is None:
    return jax.nn.softmax(scores, axis=-1)
  weights = jax.nn.softmax(jnp.where(mask, scores, LEAST), axis=-1)
  # Without any token the softmax would be uniform over the padding.
  return jnp.where(mask, weights, 0)


def init_block(rng: PRNGKey, width: int, hidden: int) -> Params:
  """Draws the parameters of `block`, with `hidden` units of its dense layer."""
  names = ("queries", "keys", "values", "merge", "hidden", "output")
  sizes = {"hidden": (width, hidden), "output": (hidden, width)}
  keys = jax.random.split(rng, len(names))
  layers = {
    name: init_dense(key, *sizes.get(name, (width, width)))
    for name, key in zip(names, keys, strict=True)
  }
  return {**layers, "norms": [init_norm(width), init_norm(width)]}


def memorize(
  params: Params, keys: Array, values: Array, heads: int
) -> KeysValues:
  """Returns what a block's tokens attend to.

  Args:
    params: the parameters of the block.
    keys: `[n, width]`, the tokens of which keys are made.
    values: `[n, width]`, those of which values are made; usually the same.
    heads: number of heads.
  """
  return KeysValues(
    _split(dense(params["keys"], keys), heads),
    _split(dense(params["values"], values), heads),
  )


def block(
  params: Params,
  x: Array,
  memory: KeysValues,
  mask: Array | None = None,
  *,
  heads: int,
  normed_first: bool = False,
) -> Array:
  """Lets tokens attend to a memory, and then transforms each token alone.

  ::

    x = norm(x + merge(attention(x, memory)))
    x = norm(x + dense(relu(dense(x))))

  and with `normed_first`, `x = x + merge(attention(norm(x), memory))` and so
  on. The memory is then one of normalised tokens, by `before`.

  Args:
    params: from `init_block`.
    x: `[m, width]`.
    memory: from `memorize`.
    mask: see `attention`.
    heads: number of heads; divides the width.
    normed_first: whether tokens are normalised before each part, not after it.

  References:
    Vaswani et al., `Attention Is All You Need
    <https://arxiv.org/abs/1706.03762>`_, 2017, section 3.1.
    Xiong et al., `On Layer Normalization in the Transformer Architecture
    <https://arxiv.org/abs/2002.04745>`_, 2020, figure 1: the two orders.
  """
  first, second = params["norms"]

  def attend(x: Array) -> Array:
    queries = _split(dense(params["queries"], x), heads)
    out = attention(queries, memory, mask)
    return dense(params["merge"], out.reshape(x.shape))

  def transform(x: Array) -> Array:
    return dense(params["output"], jax.nn.relu(dense(params["hidden"], x)))

  if normed_first:
    x = x + attend(norm(first, x))
    return x + transform(norm(second, x))
  x = norm(first, x + attend(x))
  return norm(second, x + transform(x))


def before(params: Params, x: Array, normed_first: bool) -> Array:
  """Returns the tokens of which a block's memory is made."""
  return norm(params["norms"][0], x) if normed_first else x


def _split(x: Array, heads: int) -> Array:
  return x.reshape(len(x), heads, x.shape[-1] // heads)
