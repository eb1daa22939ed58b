"""Meta-learners of networks that read a task's support in order."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from metajax.batches import concatenate, only_array
from metajax.forward import forward
from metajax.learners.heads import as_vectors
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.losses import over_examples
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Model,
  Params,
  PRNGKey,
)


class Reader(NamedTuple):
  """A network that reads encoded examples in order, each with its label.

  Attributes:
    init: `(rng, features [n, d]) -> params`.
    start: `(params, features [n, d]) -> memory`, before any example. Only the
      shape and the dtype of the features are used.
    read: `(params, memory, features [n, d], labels [n, outputs], mask=None) ->
      (predictions [n, outputs], memory)`. Each prediction is of an example and
      of what was read before it, without its label. Padding has no effect.
    predict: `(params, memory, features [m, d]) -> [m, outputs]`. Each example
      is predicted as if it were the next.
  """

  init: Callable[[PRNGKey, Array], Params]
  start: Callable[[Params, Any], Any]
  read: Callable[..., tuple[Array, Any]]
  predict: Callable[[Params, Any, Array], Array]


class SequenceLearner(NamedTuple):
  """An encoder and a `Reader` of what it encodes.

  Attributes:
    init: `(rng, inputs [n, ...]) -> params`.
    start: `(params, inputs) -> memory` before any example. Only the shape of
      the inputs is used.
    read: `(params, memory, batch) -> (predictions [n, outputs], memory)`. Each
      prediction is made before its label is read. Padding does not change the
      memory.
    predict: `(params, memory, inputs [n, ...]) -> [n, outputs]`. Each input is
      predicted as if it were the next example.
    read_features: `(params, memory, features, targets, mask)`. It is `read` for
      examples that are already encoded.
    predict_features: `(params, memory, features)`. It is `predict` for inputs
      that are already encoded.
  """

  init: Callable[[PRNGKey, Array], Params]
  start: Callable[[Params, Array], Any]
  read: Callable[[Params, Any, Batch], tuple[Array, Any]]
  predict: Callable[..., Array]
  read_features: Callable[..., tuple[Array, Any]]
  predict_features: Callable[[Params, Any, Array], Array]


def with_encoder(
  model: Model,
  reader: Callable[[int], Reader],
  num_outputs: int | None = None,
) -> SequenceLearner:
  """Puts an encoder before a reader.

  Args:
    model: the encoder, pure `init(rng, inputs)` and `apply(params, inputs)`.
    reader: `(num_outputs) -> Reader`.
    num_outputs: number of classes, or of numbers to predict. If None, it is the
      number of the encoder's outputs.

  Returns:
    A learner with the parameters `{"model": ..., "network": ...}`, those of the
    encoder and of the reader.
  """
  model = forward(model)

  def outputs_of(features: Any) -> int:
    return features.shape[-1] if num_outputs is None else num_outputs

  def init(rng: PRNGKey, inputs: Any) -> Params:
    model_key, network_key = jax.random.split(rng)
    params = model.init(model_key, inputs)
    features = model.apply(params, inputs)
    network = reader(outputs_of(features)).init(network_key, features)
    return {"model": params, "network": network}

  def start(params: Params, inputs: Any) -> Any:
    features = jax.eval_shape(model.apply, params["model"], inputs)
    return reader(outputs_of(features)).start(params["network"], features)

  def read_features(
    params: Params,
    memory: Any,
    features: Array,
    targets: Any,
    mask: Array | None = None,
  ) -> tuple[Array, Any]:
    count = outputs_of(features)
    targets = only_array(targets, "targets", "a sequence learner")
    labels = as_vectors(targets, count, features.dtype, mask)
    return reader(count).read(params["network"], memory, features, labels, mask)

  def predict_features(params: Params, memory: Any, features: Array) -> Array:
    network = reader(outputs_of(features))
    return network.predict(params["network"], memory, features)

  def read(params: Params, memory: Any, batch: Batch) -> tuple[Array, Any]:
    features = model.apply(params["model"], batch.inputs, mask=batch.mask)
    return read_features(params, memory, features, batch.targets, batch.mask)

  def predict(
    params: Params, memory: Any, inputs: Any, mask: Array | None = None
  ) -> Array:
    features = model.apply(params["model"], inputs, mask=mask)
    return predict_features(params, memory, features)

  return SequenceLearner(
    init, start, read, predict, read_features, predict_features
  )


def learn_by_reading(
  model: Model,
  reader: Callable[[int], Reader],
  loss_fn: LossFn,
  *,
  num_outputs: int | None = None,
  of_support: bool = True,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Learns to read: every prefix of a task is a training example.

  ::

    m = read(theta, support)
    g = d/dtheta  mean over tasks of  L(predictions; support and query)

  A support example is predicted from the examples before it. A query example is
  predicted from the whole support.

  Args:
    model: the encoder, see `with_encoder`.
    reader: `(num_outputs) -> Reader`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    num_outputs: see `with_encoder`.
    of_support: whether the loss is of support and query, or of the query alone.
    metrics: more such functions to be reported by `meta_grad` beside "loss",
      on the query alone.

  Returns:
    A `MetaLearner` whose task parameters are `{"params": meta-parameters,
    "memory": what was read}`.
  """
  learner = with_encoder(model, reader, num_outputs)
  encoder = forward(model)
  report = dict(metrics or {})

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    nothing = learner.start(meta_params, support.inputs)
    _, memory = learner.read(meta_params, nothing, support)
    return {"params": meta_params, "memory": memory}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Array:
    params, memory = task_params["params"], task_params["memory"]
    return learner.predict(params, memory, inputs, mask)

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    support, query = episode
    support_key, query_key = jax.random.split(rng)
    nothing = learner.start(meta_params, support.inputs)
    params = meta_params["model"]
    features, params = encoder.train(
      params, support.inputs, support_key, mask=support.mask
    )
    before, memory = learner.read_features(
      meta_params, nothing, features, support.targets, support.mask
    )
    features, params = encoder.train(
      params, query.inputs, query_key, mask=query.mask
    )
    after = learner.predict_features(meta_params, memory, features)
    judged = query._replace(inputs=after)
    if of_support:
      judged = concatenate(support._replace(inputs=before), judged)
    loss = over_examples(loss_fn, *judged)
    scores = {
      name: over_examples(f, after, query.targets, query.mask)
      for name, f in report.items()
    }
    return loss, {"loss": loss, **scores}, {**meta_params, "model": params}

  return MetaLearner(learner.init, adapt, predict, gradient_of_mean(meta_loss))
