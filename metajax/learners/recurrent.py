"""A recurrent network as a learner: the support set is read as a sequence."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.learners.heads import as_vectors
from metajax.learners.meta_gradients import gradient_of_mean
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
  """What the network has learned of a task.

  Attributes:
    state: of the recurrent network.
    label: `[outputs]`, the last example's label, which it has yet to read.
  """

  state: Any
  label: Array


class SequenceLearner(NamedTuple):
  """Reads examples one after the other, each with the label of the one before.

  Attributes:
    init: `(rng, inputs [n, ...]) -> params`.
    start: `(params, inputs) -> Memory` of one who has read nothing; of the
      inputs only the shape is used.
    read: `(params, memory, batch) -> (predictions [n, outputs], memory)`, the
      predictions made before the label is seen.
    predict: `(params, memory, inputs [n, ...]) -> [n, outputs]`, each input as
      if it came next.
  """

  init: Callable[[PRNGKey, Array], Params]
  start: Callable[[Params, Array], Memory]
  read: Callable[[Params, Memory, Batch], tuple[Array, Memory]]
  predict: Callable[[Params, Memory, Array], Array]


def sequence_learner(
  model: Model,
  *,
  num_outputs: int | None = None,
  units: int = 128,
  cell: Cell = "lstm",
) -> SequenceLearner:
  """Builds a network that learns from labelled examples in its hidden state.

  At time t it reads `(f(x_t), y_{t-1})` and predicts y_t: a label comes one
  step after its example (Santoro et al. 2016, section 2; Hochreiter et al.
  2001), so that it must be bound to what was seen before.

  Args:
    model: the encoder f, pure `init(rng, inputs)` and `apply(params, inputs)`.
    num_outputs: classes, or numbers to be predicted; None: as many as the
      encoder has outputs.
    units: of the recurrent network.
    cell: see `models.recurrent`.

  References:
    Santoro et al., `Meta-Learning with Memory-Augmented Neural Networks
    <https://proceedings.mlr.press/v48/santoro16.html>`_, 2016: the protocol and
    the LSTM it is compared with (no external memory here).
    Hochreiter et al., `Learning to Learn Using Gradient Descent
    <https://doi.org/10.1007/3-540-44668-0_13>`_, 2001.
  """

  def network_of(features: Array) -> Recurrent:
    outputs = features.shape[-1] if num_outputs is None else num_outputs
    return recurrent_network(outputs, units=units, cell=cell)

  def outputs_of(features: Array) -> int:
    return features.shape[-1] if num_outputs is None else num_outputs

  def init(rng: PRNGKey, inputs: Array) -> Params:
    model_key, network_key = jax.random.split(rng)
    params = model.init(model_key, inputs)
    features = model.apply(params, inputs)
    width = features.shape[-1] + outputs_of(features)
    example = jnp.zeros((1, width), features.dtype)
    return {
      "model": params,
      "network": network_of(features).init(network_key, example),
    }

  def start(params: Params, inputs: Array) -> Memory:
    features = jax.eval_shape(model.apply, params["model"], inputs)
    zeros = jnp.zeros(outputs_of(features), features.dtype)
    state = network_of(features).start()
    return Memory(_cast(state, features.dtype), zeros)

  def read(
    params: Params, memory: Memory, batch: Batch
  ) -> tuple[Array, Memory]:
    features = model.apply(params["model"], batch.inputs)
    network = network_of(features)
    labels = as_vectors(batch.targets, outputs_of(features), features.dtype)
    before = jnp.concatenate([memory.label[None], labels[:-1]])

    def one(state: Any, inputs: Array) -> tuple[Any, Array]:
      hidden, new = network.read(params["network"], state, inputs)
      return _cast(new, features.dtype), hidden

    state, hidden = jax.lax.scan(
      one, memory.state, jnp.concatenate([features, before], axis=-1)
    )
    predictions = network.head(params["network"], hidden)
    return predictions, Memory(state, labels[-1])

  def predict(params: Params, memory: Memory, inputs: Array) -> Array:
    features = model.apply(params["model"], inputs)
    network = network_of(features)
    # Each from the same memory.
    state, label = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(features), *x.shape)), memory
    )
    hidden, _ = network.read(
      params["network"], state, jnp.concatenate([features, label], axis=-1)
    )
    return network.head(params["network"], hidden)

  return SequenceLearner(init, start, read, predict)


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
  """Learns by reading: adaptation is a hidden state, not a gradient step.

  ::

    m = read(theta, support)
    g = d/dtheta  mean over tasks of  L(predictions; support and query)

  where an example of the support is predicted from those before it, and each of
  the query from the whole support. The learner depends on the support's order.

  Args:
    model: the encoder; see `sequence_learner`, also for what follows.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: not used: there is no inner loop.
    num_steps: likewise.
    num_outputs: classes, or numbers to be predicted; None: the encoder's.
    units: of the recurrent network.
    cell: see `models.recurrent`; "delta" learns by far the soonest to bind
      labels to examples.
    num_eval_steps: not used.
    metrics: more such functions to be reported by `meta_grad` beside "loss",
      on the query alone.
    memory: not used.

  Returns:
    A `MetaLearner` whose task parameters are the meta-parameters and a
    `Memory`.
  """
  del inner_optimizer, memory
  inner_loop.check_steps(
    num_steps=num_steps,
    num_eval_steps=num_steps if num_eval_steps is None else num_eval_steps,
  )
  learner = sequence_learner(
    model, num_outputs=num_outputs, units=units, cell=cell
  )
  report = dict(metrics or {})

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    nothing = learner.start(meta_params, support.inputs)
    _, memory = learner.read(meta_params, nothing, support)
    return {"params": meta_params, "memory": memory}

  def predict(task_params: Params, inputs: Array) -> Array:
    return learner.predict(task_params["params"], task_params["memory"], inputs)

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    del rng
    support, query = episode
    nothing = learner.start(meta_params, support.inputs)
    before, memory = learner.read(meta_params, nothing, support)
    after = learner.predict(meta_params, memory, query.inputs)
    loss = loss_fn(
      jnp.concatenate([before, after]),
      jnp.concatenate([support.targets, query.targets]),
    )
    scores = {name: f(after, query.targets) for name, f in report.items()}
    return loss, {"loss": loss, **scores}

  return MetaLearner(learner.init, adapt, predict, gradient_of_mean(meta_loss))


def _cast(state: Any, dtype: Any) -> Any:
  """Keeps a state in the encoder's precision, whatever the cell computes in."""
  return jax.tree.map(lambda x: x.astype(dtype), state)
