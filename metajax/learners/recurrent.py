"""A recurrent network as a learner. It reads the support as a sequence."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.learners.reading import (
  Reader,
  SequenceLearner,
  learn_by_reading,
  with_encoder,
)
from metajax.models.recurrent import Cell, Recurrent
from metajax.models.recurrent import recurrent as recurrent_network
from metajax.types import Array, LossFn, MetaLearner, Model, Params, PRNGKey


class Memory(NamedTuple):
  """The per-task state of a recurrent reader.

  Attributes:
    state: the hidden state of the recurrent network.
    label: `[outputs]`, the label of the last example. The network reads it
      together with the next example.
  """

  state: Any
  label: Array


def recurrent_reader(network: Recurrent, num_outputs: int) -> Reader:
  """Lets a recurrent network read each example with the label before it.

  At time t the network reads `(f_t, y_{t-1})` and predicts y_t. A label comes
  one step after its example (Santoro et al. 2016, section 2; Hochreiter et al.
  2001). The network must therefore store the example until its label comes.

  Args:
    network: from `models.recurrent`, or any other such functions.
    num_outputs: numbers of a label.
  """

  def init(rng: PRNGKey, features: Array) -> Params:
    width = features.shape[-1] + num_outputs
    return network.init(rng, jnp.zeros((1, width), features.dtype))

  def start(params: Params, features: Any) -> Memory:
    state = network.start()
    zeros = jnp.zeros(num_outputs, features.dtype)
    return Memory(_cast(state, features.dtype), zeros)

  def read(
    params: Params,
    memory: Memory,
    features: Array,
    labels: Array,
    mask: Array | None = None,
  ) -> tuple[Array, Memory]:
    is_real = jnp.ones(len(features), bool) if mask is None else mask

    def one(memory: Memory, example: tuple) -> tuple[Memory, Array]:
      feature, label, is_real = example
      inputs = jnp.concatenate([feature, memory.label])
      hidden, state = network.read(params, memory.state, inputs)
      new = Memory(_cast(state, features.dtype), label)
      if mask is not None:
        new = jax.tree.map(lambda a, b: jnp.where(is_real, a, b), new, memory)
      return new, hidden

    memory, hidden = jax.lax.scan(one, memory, (features, labels, is_real))
    return network.head(params, hidden), memory

  def predict(params: Params, memory: Memory, features: Array) -> Array:
    # Every example is predicted from the same memory.
    state, label = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(features), *x.shape)), memory
    )
    inputs = jnp.concatenate([features, label], axis=-1)
    hidden, _ = network.read(params, state, inputs)
    return network.head(params, hidden)

  return Reader(init, start, read, predict)


def sequence_learner(
  model: Model,
  *,
  num_outputs: int | None = None,
  units: int = 128,
  cell: Cell = "lstm",
) -> SequenceLearner:
  """Builds a network that learns from labelled examples in its hidden state.

  Args:
    model: the encoder, pure `init(rng, inputs)` and `apply(params, inputs)`.
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
  return with_encoder(model, of_cell(units=units, cell=cell), num_outputs)


def of_cell(
  *, units: int = 128, cell: Cell = "lstm"
) -> Callable[[int], Reader]:
  """Returns `(num_outputs) -> Reader` of `models.recurrent.recurrent`."""

  def reader(num_outputs: int) -> Reader:
    network = recurrent_network(num_outputs, units=units, cell=cell)
    return recurrent_reader(network, num_outputs)

  return reader


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
  return learn_by_reading(
    model,
    of_cell(units=units, cell=cell),
    loss_fn,
    num_outputs=num_outputs,
    metrics=metrics,
  )


def _cast(state: Any, dtype: Any) -> Any:
  """Casts a hidden state to `dtype`, the dtype of the encoder's features."""
  return jax.tree.map(lambda x: x.astype(dtype), state)
