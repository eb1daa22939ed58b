"""Causal transformers that read examples and their labels in order."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.context.dense import dense, init_dense, init_head, init_norm, norm
from metajax.context.sequence import sequence_transformer
from metajax.context.transformer import Cache, transformer
from metajax.learners.reading import Reader
from metajax.types import Array, Batch, Params, PRNGKey


def paired_transformer(
  num_outputs: int, *, layers: int = 2, **sizes: int
) -> Reader:
  """Lets a causal transformer read each example as one token with its label.

  ::

    what was read:  A [f_1, y_1], A [f_2, y_2], ...
    what is asked:  A [f_t, 0], which attends to those before it and to itself

  As in SNAIL, an example is bound to its label from the beginning, and all
  prefixes of a task are computed at once, each example both ways. It has no
  positions and reads sequences of any length. Blocks normalise first. Keys
  begin equal to queries, so that an example attends most to those like it, and
  the head begins with zeros. Otherwise training begins with a long plateau.

  Args:
    num_outputs: number of classes, or of numbers to predict.
    layers: number of blocks. Two bind labels to new classes.
    **sizes: width, hidden and heads, see `transformer`.

  Raises:
    ValueError: if the heads do not divide the width, or a size is less than 1.

  References:
    Nguyen and Grover, `Transformer Neural Processes
    <https://arxiv.org/abs/2207.04179>`_, 2022, section 4.1: tokens of pairs,
    and targets that are asked with zeros.
  """
  network = transformer(normed_first=True, matched=True, layers=layers, **sizes)
  width = sizes.get("width", 64)

  def init(rng: PRNGKey, features: Array) -> Params:
    keys = jax.random.split(rng)
    return {
      "tokens": init_dense(keys[0], features.shape[-1] + num_outputs, width),
      "blocks": network.init(keys[1]),
      "norm": init_norm(width),
      "head": init_head(width, num_outputs),
    }

  def start(params: Params, features: Any) -> Cache:
    dtype = jnp.result_type(features.dtype, params["norm"]["scale"])
    nothing = jnp.zeros((0, width), dtype)
    return network.read(params["blocks"], nothing, causal=True)[1]

  def tokens(params: Params, features: Array, labels: Array) -> Array:
    pairs = jnp.concatenate([features, labels], axis=-1)
    return dense(params["tokens"], pairs)

  def predict(
    params: Params, memory: Cache, features: Array, seen: Array | None = None
  ) -> Array:
    n = len(features)
    zeros = jnp.zeros((n, num_outputs), features.dtype)
    asked = tokens(params, features, zeros)
    itself = jnp.eye(n, dtype=bool)
    hidden = network.ask(params["blocks"], memory, asked, itself, seen)
    return dense(params["head"], norm(params["norm"], hidden))

  def read(
    params: Params,
    memory: Cache,
    features: Array,
    labels: Array,
    mask: Array | None = None,
  ) -> tuple[Array, Cache]:
    past = len(memory.mask)
    _, memory = network.read(
      params["blocks"],
      tokens(params, features, labels),
      mask,
      causal=True,
      past=memory,
    )
    places = past + jnp.arange(len(features))
    seen = jnp.arange(len(memory.mask)) < places[:, None]
    return predict(params, memory, features, seen), memory

  return Reader(init, start, read, predict)


def interleaved_transformer(
  num_outputs: int, *, length: int = 51, **sizes: int
) -> Reader:
  """Lets a causal transformer read `x_1, y_1, x_2, y_2, ...`.

  Args:
    num_outputs: number of classes, or of numbers to predict.
    length: the most examples of a task, the predicted one included.
    **sizes: width, hidden, layers and heads, see `transformer`.
  """
  network = sequence_transformer(
    num_labels=num_outputs, positions=length, **sizes
  )

  def start(params: Params, features: Any) -> Cache:
    nothing = Batch(
      jnp.zeros((0, features.shape[-1]), features.dtype),
      jnp.zeros((0, num_outputs), features.dtype),
    )
    return network.read(params, nothing)[1]

  def read(
    params: Params,
    memory: Cache,
    features: Array,
    labels: Array,
    mask: Array | None = None,
  ) -> tuple[Array, Cache]:
    return network.read(params, Batch(features, labels, mask), memory)

  return Reader(network.init, start, read, network.predict)
