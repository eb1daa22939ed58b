"""A recurrent network as a learner. It reads the support as a sequence."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.batches import concatenate, only_array
from metajax.forward import forward
from metajax.learners.heads import as_vectors
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.losses import over_examples
from metajax.models.recurrent import Cell, Recurrent
from metajax.models.recurrent import recurrent as recurrent_network
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


class Memory(NamedTuple):
  """The per-task state of a sequence learner.

  Attributes:
    state: the hidden state of the recurrent network.
    label: `[outputs]`, the label of the last example. The network reads it
      together with the next example.
  """

  state: Any
  label: Array


class SequenceLearner(NamedTuple):
  """A network that reads examples in order, each with the label before it.

  Attributes:
    init: `(rng, inputs [n, ...]) -> params`.
    start: `(params, inputs) -> Memory` before any example. Only the shape of
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
  start: Callable[[Params, Array], Memory]
  read: Callable[[Params, Memory, Batch], tuple[Array, Memory]]
  predict: Callable[..., Array]
  read_features: Callable[..., tuple[Array, Memory]]
  predict_features: Callable[[Params, Memory, Array], Array]


def sequence_learner(
  model: Model,
  *,
  num_outputs: int | None = None,
  units: int = 128,
  cell: Cell = "lstm",
) -> SequenceLearner:
  """Builds a network that learns from labelled examples in its hidden state.

  At time t the network reads `(f(x_t), y_{t-1})` and predicts y_t. A label
  comes one step after its example (Santoro et al. 2016, section 2; Hochreiter
  et al. 2001). The network must therefore store the example until its label
  comes.

  Args:
    model: the encoder f, pure `init(rng, inputs)` and `apply(params, inputs)`.
    num_outputs: number of classes, or of numbers to predict. If None, it is the
      number of the encoder's outputs.
    units: number of units of the recurrent network.
    cell: see `models.recurrent`.

  References:
    Santoro et al., `Meta-Learning with Memory-Augmented Neural Networks
    <https://proceedings.mlr.press/v48/santoro16.html>`_, 2016: the protocol and
    the LSTM baseline (without the external memory).
    Hochreiter et al., `Learning to Learn Using Gradient Descent
    <https://doi.org/10.1007/3-540-44668-0_13>`_, 2001.
  """
  model = forward(model)

  def outputs_of(features: Array) -> int:
    return features.shape[-1] if num_outputs is None else num_outputs

  def network_of(features: Array) -> Recurrent:
    return recurrent_network(outputs_of(features), units=units, cell=cell)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    model_key, network_key = jax.random.split(rng)
    params = model.init(model_key, inputs)
    features = model.apply(params, inputs)
    width = features.shape[-1] + outputs_of(features)
    example = jnp.zeros((1, width), features.dtype)
    return {
      "model": params,
      "network": network_of(features).init(network_key, example),
    }

  def start(params: Params, inputs: Any) -> Memory:
    features = jax.eval_shape(model.apply, params["model"], inputs)
    zeros = jnp.zeros(outputs_of(features), features.dtype)
    state = network_of(features).start()
    return Memory(_cast(state, features.dtype), zeros)

  def read_features(
    params: Params,
    memory: Memory,
    features: Array,
    targets: Any,
    mask: Array | None = None,
  ) -> tuple[Array, Memory]:
    network = network_of(features)
    targets = only_array(targets, "targets", "a sequence learner")
    labels = as_vectors(targets, outputs_of(features), features.dtype, mask)
    is_real = jnp.ones(len(features), bool) if mask is None else mask

    def one(memory: Memory, example: tuple) -> tuple[Memory, Array]:
      feature, label, is_real = example
      inputs = jnp.concatenate([feature, memory.label])
      hidden, state = network.read(params["network"], memory.state, inputs)
      new = Memory(_cast(state, features.dtype), label)
      if mask is not None:
        new = jax.tree.map(lambda a, b: jnp.where(is_real, a, b), new, memory)
      return new, hidden

    memory, hidden = jax.lax.scan(one, memory, (features, labels, is_real))
    return network.head(params["network"], hidden), memory

  def predict_features(
    params: Params, memory: Memory, features: Array
  ) -> Array:
    network = network_of(features)
    # Every input is predicted from the same memory.
    state, label = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(features), *x.shape)), memory
    )
    hidden, _ = network.read(
      params["network"], state, jnp.concatenate([features, label], axis=-1)
    )
    return network.head(params["network"], hidden)

  def read(
    params: Params, memory: Memory, batch: Batch
  ) -> tuple[Array, Memory]:
    features = model.apply(params["model"], batch.inputs, mask=batch.mask)
    return read_features(params, memory, features, batch.targets, batch.mask)

  def predict(
    params: Params, memory: Memory, inputs: Any, mask: Array | None = None
  ) -> Array:
    features = model.apply(params["model"], inputs, mask=mask)
    return predict_features(params, memory, features)

  return SequenceLearner(
    init, start, read, predict, read_features, predict_features
  )


def recurrent(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation | None = None,
  num_steps: int = 0,
  *,
  num_outputs: int | None = None,
  units: int = 128,
  cell: Cell = "lstm",
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Learns in the hidden state of a recurrent network, without gradient steps.

  ::

    m = read(theta, support)
    g = d/dtheta  mean over tasks of  L(predictions; support and query)

  A support example is predicted from the examples before it. A query example is
  predicted from the whole support. The predictions depend on the order of the
  support.

  Args:
    model: the encoder, see `sequence_learner`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: not used, because there is no inner loop.
    num_steps: not used.
    num_outputs: number of classes, or of numbers to predict. If None, it is the
      number of the encoder's outputs.
    units: number of units of the recurrent network.
    cell: see `models.recurrent`. "delta" learns to bind labels to examples in
      far fewer steps than the others.
    num_eval_steps: not used.
    metrics: more such functions to be reported by `meta_grad` beside "loss",
      on the query alone.
    memory: not used.

  Returns:
    A `MetaLearner` whose task parameters are `{"params": meta-parameters,
    "memory": Memory}`.

  Raises:
    ValueError: for a negative number of steps, although none is taken.
  """
  del inner_optimizer, memory
  inner_loop.check_steps(
    num_steps=num_steps,
    num_eval_steps=num_steps if num_eval_steps is None else num_eval_steps,
  )
  learner = sequence_learner(
    model, num_outputs=num_outputs, units=units, cell=cell
  )
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
    both = concatenate(
      support._replace(inputs=before), query._replace(inputs=after)
    )
    loss = over_examples(loss_fn, *both)
    scores = {
      name: over_examples(f, after, query.targets, query.mask)
      for name, f in report.items()
    }
    return loss, {"loss": loss, **scores}, {**meta_params, "model": params}

  return MetaLearner(learner.init, adapt, predict, gradient_of_mean(meta_loss))


def _cast(state: Any, dtype: Any) -> Any:
  """Casts a hidden state to `dtype`, the dtype of the encoder's features."""
  return jax.tree.map(lambda x: x.astype(dtype), state)
