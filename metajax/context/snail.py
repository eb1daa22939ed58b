"""SNAIL: causal convolutions and attention over examples and labels."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.context.dense import dense, init_dense, init_head
from metajax.learners.reading import Reader
from metajax.numerics import check_counts
from metajax.types import Array, Params, PRNGKey

ATTENTION = ((64, 32), (256, 128), (512, 256))  # (keys, values), few-shot.


# The dilation of a dense block, or the numbers of keys and of values.
Layer = int | tuple[int, int]


class Examples(NamedTuple):
  """What was read, at every layer.

  Attributes:
    layers: keys and values, or products with convolutions' weights, `[n, ...]`.
    mask: `[n]`, True for real examples. They come first.
  """

  layers: tuple[Array, ...]
  mask: Array


def snail(
  num_outputs: int,
  *,
  length: int = 51,
  channels: int = 128,
  attention: Sequence[Sequence[int]] = ATTENTION,
) -> Reader:
  """Builds attention blocks with a block of convolutions between each two.

  ::

    attention block:  x_t <- [x_t, sum_{s <= t} softmax_s(q_t . k_s) v_s]
    dense block:      x_t <- [x_t, tanh(a_t) sigmoid(b_t)]
                      a_t, b_t = A x_{t-d} + B x_t + c

  A block of convolutions is a dense block for each d = 1, 2, 4, ..., until they
  reach over `length` examples. An example that was read is `(f_t, y_t)`. One
  that is predicted is `(f_t, 0)`, after the examples before it: the published
  network for the last example of a task. All prefixes of a task are computed at
  once, each example both ways. Keys begin equal to queries, and the head begins
  with zeros, see `paired_transformer`.

  Args:
    num_outputs: number of classes, or of numbers to predict.
    length: T, the most examples of a task, the predicted one included. Longer
      tasks can be read.
    channels: channels of a convolution.
    attention: numbers of a key and of a value, for each attention block.

  Returns:
    A `Reader`. The defaults are the paper's, of 51 examples.

  Raises:
    ValueError: for a size below 1.

  References:
    Mishra et al., `A Simple Neural Attentive Meta-Learner
    <https://arxiv.org/abs/1707.03141>`_, 2018, section 3 and appendix B.
  """
  check_counts(num_outputs=num_outputs, length=length, channels=channels)
  for size in (n for pair in attention for n in pair):
    check_counts(attention=size)
  dilations = [2**i for i in range(math.ceil(math.log2(max(2, length))))]
  layers: list[Layer] = []
  for i, (keys, values) in enumerate(attention):
    pair = keys, values
    layers += [pair] if i == 0 else [*dilations, pair]

  def init(rng: PRNGKey, features: Array) -> Params:
    width, params = features.shape[-1] + num_outputs, []
    keys = jax.random.split(rng, len(layers))
    for key, layer in zip(keys, layers, strict=True):
      params.append(_init_layer(key, layer, width, channels))
      width += _num_new(layer, channels)
    return {"layers": params, "head": init_head(width, num_outputs)}

  def start(params: Params, features: Any) -> Examples:
    del params
    sizes = [sum(x) if isinstance(x, tuple) else 2 * channels for x in layers]
    past = (jnp.zeros((0, size), features.dtype) for size in sizes)
    return Examples(tuple(past), jnp.zeros(0, bool))

  def read(
    params: Params,
    memory: Examples,
    features: Array,
    labels: Array,
    mask: Array | None = None,
  ) -> tuple[Array, Examples]:
    mask = jnp.ones(len(features), bool) if mask is None else mask
    places = memory.mask.sum() + jnp.cumsum(mask) - mask
    whole = jnp.concatenate([memory.mask, mask])
    order = jnp.argsort(~whole, stable=True)  # Real ones first.
    x, read = jnp.concatenate([features, labels], axis=-1), []
    for layer, weights, past in zip(
      layers, params["layers"], memory.layers, strict=True
    ):
      left = _remember(layer, weights, x)
      read.append(jnp.concatenate([past, left])[order])
      x = _apply(layer, weights, x, places, read[-1])
    memory = Examples(tuple(read), whole[order])
    return ask(params, memory, features, places), memory

  def ask(
    params: Params, memory: Examples, features: Array, places: Array
  ) -> Array:
    """Predicts each example from the first `places [m]` that were read."""
    zeros = jnp.zeros((len(features), num_outputs), features.dtype)
    x = jnp.concatenate([features, zeros], axis=-1)
    for layer, weights, past in zip(
      layers, params["layers"], memory.layers, strict=True
    ):
      x = _apply(layer, weights, x, places, past)
    return dense(params["head"], x)

  def predict(params: Params, memory: Examples, features: Array) -> Array:
    places = jnp.full(len(features), memory.mask.sum())
    return ask(params, memory, features, places)

  return Reader(init, start, read, predict)


def _num_new(layer: Layer, channels: int) -> int:
  return layer[1] if isinstance(layer, tuple) else channels


def _init_layer(
  rng: PRNGKey, layer: Layer, width: int, channels: int
) -> Params:
  if not isinstance(layer, tuple):
    return init_dense(rng, 2 * width, 2 * channels)
  keys = jax.random.split(rng)
  queries = init_dense(keys[0], width, layer[0])
  memory = init_dense(keys[1], width, sum(layer))
  # Keys begin equal to queries: examples attend most to those like them.
  matched = jax.tree.map(
    lambda x, y: x.at[..., : layer[0]].set(y), memory, queries
  )
  return {"queries": queries, "memory": matched}


def _remember(layer: Layer, params: Params, x: Array) -> Array:
  """Returns what examples `x [n, width]` leave for those after them.

  They are A x of a dense block, or keys and values.
  """
  if isinstance(layer, tuple):
    return dense(params["memory"], x)
  return x @ params["kernel"][: x.shape[-1]]


def _apply(
  layer: Layer, params: Params, x: Array, places: Array, past: Array
) -> Array:
  """Applies a layer to examples that come after the first of those read.

  Args:
    layer: the dilation of a dense block, or the sizes of an attention block.
    params: the parameters of the layer.
    x: `[m, width]`.
    places: `[m]`, how many examples are before each of `x`.
    past: `[n, ...]`, what was remembered of the examples that were read.

  Returns:
    `[m, width + new channels]`.
  """
  if isinstance(layer, tuple):
    queries = dense(params["queries"], x) * layer[0] ** -0.5
    own_key, own = jnp.split(_remember(layer, params, x), [layer[0]], -1)
    keys, values = jnp.split(past, [layer[0]], axis=-1)
    before = jnp.arange(len(past)) < places[:, None]
    scores = jnp.where(before, queries @ keys.T, -1e30)
    own_score = (queries * own_key).sum(-1, keepdims=True)
    weights = jax.nn.softmax(jnp.concatenate([scores, own_score], -1), axis=-1)
    new = weights[:, :-1] @ values + weights[:, -1:] * own
  else:
    both = x @ params["kernel"][x.shape[-1] :] + params["bias"]
    if len(past):
      found = past[jnp.clip(places - layer, 0, len(past) - 1)]
      both += jnp.where((places >= layer)[:, None], found, 0)
    new, gate = jnp.split(both, 2, axis=-1)
    new = jnp.tanh(new) * jax.nn.sigmoid(gate)
  return jnp.concatenate([x, new], axis=-1)
