"""A causal transformer that reads examples and labels as one sequence."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.batches import concatenate, flat, num_examples, only_array, real
from metajax.context.dense import dense, init_dense, init_norm, norm
from metajax.context.objectives import vectors
from metajax.context.transformer import Cache, transformer
from metajax.learners.heads import as_vectors
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.losses import over_examples
from metajax.numerics import check_counts
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Params,
  PRNGKey,
)


class SequenceTransformer(NamedTuple):
  """A network that reads `x_1, y_1, x_2, y_2, ...`, and predicts each y.

  Attributes:
    init: `(rng, inputs [n, ...]) -> params`.
    read: `(params, batch, past=None) -> (outputs [n, num_outputs], Cache)`.
      Each output is computed from the examples before it and its own input.
      `past` is a cache of examples that were read before.
    predict: `(params, cache, inputs [m, ...]) -> [m, num_outputs]`. Each input
      is read as if it were the next, and the last.
  """

  init: Callable[[PRNGKey, Any], Params]
  read: Callable[..., tuple[Array, Cache]]
  predict: Callable[[Params, Cache, Any], Array]


def sequence_transformer(
  *,
  num_labels: int = 1,
  num_outputs: int | None = None,
  positions: int | None = None,
  **sizes: Any,
) -> SequenceTransformer:
  """Builds a causal transformer over examples and their labels.

  ::

    tokens = A x_1, B y_1, A x_2, B y_2, ...  (+ a position each)

  Blocks normalise first, as in GPT-2. Padding is skipped: it has no position.

  Args:
    num_labels: d, numbers of a label, or its number of classes.
    num_outputs: numbers of an output; None: as many as of a label.
    positions: the most examples, each of which has a learned position; None: no
      positions, so that a sequence of any length can be read.
    **sizes: width, hidden, layers and heads of `transformer.transformer`.

  Raises:
    ValueError: from `read` and `predict`, for more examples than positions.

  References:
    Garg et al., `What Can Transformers Learn In-Context?
    <https://arxiv.org/abs/2208.01066>`_, 2022, section 2 and appendix A.
  """
  network = transformer(normed_first=True, **sizes)
  check_counts(num_labels=num_labels)
  if positions is not None:
    check_counts(positions=positions)
  width = sizes.get("width", 64)
  count = num_labels if num_outputs is None else num_outputs

  def init(rng: PRNGKey, inputs: Any) -> Params:
    keys = jax.random.split(rng, 5)
    params = {
      "inputs": init_dense(keys[0], vectors(inputs).shape[1], width),
      "labels": init_dense(keys[1], num_labels, width),
      "blocks": network.init(keys[2]),
      "norm": init_norm(width),
      "head": init_dense(keys[3], width, count),
    }
    if positions is not None:
      shape = (2 * positions, width)
      params["positions"] = 0.02 * jax.random.normal(keys[4], shape)
    return params

  def labels(batch: Batch) -> Array:
    x = vectors(batch.inputs)
    targets = only_array(batch.targets, "targets", "a sequence transformer")
    if jnp.issubdtype(targets.dtype, jnp.floating):
      return flat(targets)
    return as_vectors(targets, num_labels, x.dtype, batch.mask)

  def head(params: Params, hidden: Array) -> Array:
    return dense(params["head"], norm(params["norm"], hidden))

  def placed(params: Params, tokens: Array, place: Array, last: int) -> Array:
    if positions is None:
      return tokens
    if last > positions:
      raise ValueError(
        f"{last} examples: more than positions={positions}; give more "
        "positions, or None for any length."
      )
    return tokens + params["positions"][place]

  def read(
    params: Params, batch: Batch, past: Cache | None = None
  ) -> tuple[Array, Cache]:
    x = dense(params["inputs"], vectors(batch.inputs))
    y = dense(params["labels"], labels(batch))
    n, mask = len(x), real(batch)
    tokens = jnp.stack([x, y], axis=1).reshape(2 * n, width)
    nth = jnp.cumsum(mask) - mask
    place = jnp.stack([2 * nth, 2 * nth + 1], axis=1).ravel()
    last = n
    if past is not None:
      place, last = place + past.mask.sum(), n + len(past.mask) // 2
    hidden, cache = network.read(
      params["blocks"],
      placed(params, tokens, place, last),
      jnp.repeat(mask, 2),
      causal=True,
      past=past,
    )
    return head(params, hidden[::2]), cache

  def predict(params: Params, cache: Cache, inputs: Any) -> Array:
    x = dense(params["inputs"], vectors(inputs))
    last = len(cache.mask) // 2 + 1
    tokens = placed(params, x, cache.mask.sum(), last)
    itself = jnp.eye(len(x), dtype=bool)
    return head(params, network.ask(params["blocks"], cache, tokens, itself))

  return SequenceTransformer(init, read, predict)


def transformer_learner(
  network: SequenceTransformer,
  loss_fn: LossFn,
  *,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Learns to learn by reading: every prefix of a task is a training example.

  ::

    g = d/dtheta  mean over tasks of  L(outputs; support and query)

  A support example is predicted from those before it, and a query example from
  the whole support.

  Args:
    network: from `sequence_transformer`.
    loss_fn: `(outputs, targets) -> scalar`, a mean over examples.
    metrics: more such functions of the query, reported by `meta_grad` beside
      "loss".

  Returns:
    A `MetaLearner` that predicts the outputs of the network, `[n, ...]`.
  """

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    _, cache = network.read(meta_params, support)
    return {"params": meta_params, "cache": cache}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Array:
    del mask
    return network.predict(task_params["params"], task_params["cache"], inputs)

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    del rng
    support, query = episode
    before, cache = network.read(meta_params, support)
    after = network.predict(meta_params, cache, query.inputs)
    outputs = jnp.concatenate([before, after])
    both = concatenate(support, query)
    loss = over_examples(loss_fn, outputs, both.targets, both.mask)
    scores = {
      name: over_examples(
        f, outputs[num_examples(support) :], query.targets, query.mask
      )
      for name, f in dict(metrics or {}).items()
    }
    return loss, {"loss": loss, **scores}

  return MetaLearner(network.init, adapt, predict, gradient_of_mean(meta_loss))
