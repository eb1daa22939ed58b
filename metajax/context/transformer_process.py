"""Transformer neural processes, of independent predictions (TNP-D)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.batches import real
from metajax.context.dense import init_mlp, mlp
from metajax.context.objectives import maximum_likelihood, numbers, vectors
from metajax.context.transformer import Cache, transformer
from metajax.numerics import check_counts
from metajax.predictive import Normal
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
)


class Reader(NamedTuple):
  """A transformer that reads labelled points and is asked about inputs.

  Attributes:
    init: `(rng, inputs) -> params`.
    read: `(params, support) -> Cache`.
    embed: `(params, inputs [m, ...], targets [m, d] or None) -> tokens
      [m, width]`. None: the targets are not known, and zeros in their place.
    ask: `(params, cache, tokens [m, width], among=None) -> [m, width]`, see
      `Transformer`.
    width: width of the tokens.
  """

  init: Callable[[PRNGKey, Any], Params]
  read: Callable[[Params, Batch], Cache]
  embed: Callable[[Params, Any, Array | None], Array]
  ask: Callable[..., Array]
  width: int


def reader(
  num_outputs: int,
  *,
  width: int = 64,
  hidden: int | None = None,
  layers: int = 6,
  heads: int = 4,
) -> Reader:
  """Builds the network that all transformer neural processes share.

  ::

    token of a support point = MLP(x, y)
    token of a query         = MLP(x, 0)

  Support tokens attend to the support, and query tokens to the support alone.

  Args:
    num_outputs: d, numbers of a target.
    width: see `transformer.transformer`, as for the others.
    hidden: units of the dense layer in each block.
    layers: number of blocks.
    heads: number of heads.
  """
  check_counts(num_outputs=num_outputs)
  network = transformer(width=width, hidden=hidden, layers=layers, heads=heads)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    embed_key, blocks_key = jax.random.split(rng)
    size = vectors(inputs).shape[1] + num_outputs
    return {
      "embed": init_mlp(embed_key, [size, *[width] * 4]),
      "blocks": network.init(blocks_key),
    }

  def embed(params: Params, inputs: Any, targets: Array | None) -> Array:
    x = vectors(inputs)
    if targets is None:
      targets = jnp.zeros((len(x), num_outputs), x.dtype)
    return mlp(params["embed"], jnp.concatenate([x, targets], axis=1))

  def read(params: Params, support: Batch) -> Cache:
    tokens = embed(params, support.inputs, numbers(support, num_outputs))
    return network.read(params["blocks"], tokens, real(support))[1]

  def ask(
    params: Params, cache: Cache, tokens: Array, among: Array | None = None
  ) -> Array:
    return network.ask(params["blocks"], cache, tokens, among)

  return Reader(init, read, embed, ask, width)


def tnp_d(
  *,
  num_outputs: int = 1,
  metrics: Mapping[str, LossFn] | None = None,
  **sizes: Any,
) -> MetaLearner:
  """Predicts each query alone, by a transformer that reads the support (TNP-D).

  ::

    y_i ~ N(m(x_i, support), s(x_i, support)^2)
    g = d/dtheta  mean over tasks of  -log-likelihood of the query

  A query attends to the support and not to other queries. `adapt` computes keys
  and values of the support at every layer, so that `predict` costs the queries
  only. The support is a set of any size.

  Args:
    num_outputs: d, numbers of a target.
    metrics: `(predictions, targets) -> scalar` functions of the query, reported
      by `meta_grad` beside "loss".
    **sizes: width, hidden, layers and heads of `transformer.transformer`. The
      defaults are those of the paper's regression in one dimension.

  Returns:
    A `MetaLearner` that predicts a `Normal` of `[n, d]`. Inputs are flattened
    to vectors.

  References:
    Nguyen and Grover, `Transformer Neural Processes
    <https://arxiv.org/abs/2207.04179>`_, 2022, section 3.
  """
  network = reader(num_outputs, **sizes)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    return with_head(network, rng, inputs, 2 * num_outputs)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    return {"params": meta_params, "cache": network.read(meta_params, support)}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Normal:
    del mask
    return alone(network, task_params, inputs)

  return maximum_likelihood(
    init, adapt, predict, metrics, num_outputs=num_outputs
  )


def with_head(
  network: Reader, rng: PRNGKey, inputs: Any, num_outputs: int
) -> Params:
  """Draws the parameters of a reader, and of a head with one hidden layer."""
  reader_key, head_key = jax.random.split(rng)
  sizes = [network.width, 2 * network.width, num_outputs]
  return {
    **network.init(reader_key, inputs),
    "head": init_mlp(head_key, sizes),
  }


def alone(network: Reader, task_params: Params, inputs: Any) -> Normal:
  """Predicts each input from the support alone."""
  params, cache = task_params["params"], task_params["cache"]
  tokens = network.embed(params, inputs, None)
  return normal(mlp(params["head"], network.ask(params, cache, tokens)))


def normal(outputs: Array) -> Normal:
  """Returns the normal of `[n, 2 d]` outputs, means and log scales."""
  mean, log_scale = jnp.split(outputs, 2, axis=-1)
  return Normal(mean, jnp.exp(log_scale))
