"""Readers as players: their memory becomes the state of a recurrent network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.learners.reading import Reader
from metajax.models.recurrent import (
  Head,
  Recurrent,
  output_head,
  over_leading_axes,
)
from metajax.numerics import check_counts
from metajax.types import Array, Params, PRNGKey


def reading_network(
  reader: Callable[[int], Reader],
  num_outputs: int,
  *,
  window: int,
  units: int = 64,
  head: Head = "linear",
) -> Recurrent:
  """Lets a transformer or SNAIL play bandits and MDPs as recurrent networks do.

  ::

    h_t = read(x_t; memory of x_{t-window}, ..., x_{t-1}),  outputs = head(h_t)

  A step of a trial is an example without a label: what is known of the past
  action and its reward is part of the input that follows. The state has what
  the reader keeps of the last `window` steps, so that a step costs what it
  attends to and no step is read again. While there were fewer steps, the rest
  is padding. With a window as long as a trial nothing is forgotten.

  Args:
    reader: `(num_outputs) -> Reader` whose memory has a `mask` and one entry
      for each example, as "snail" and "transformer" of `build_reader`.
    num_outputs: number of actions.
    window: the most steps of the past, those of a trial.
    units: numbers of h.
    head: see `models.recurrent.recurrent`.

  Returns:
    A network for players and trainers of `metajax.replay` and
    `metajax.policies`. Its state has `window` entries in every layer. A trainer
    that stores states, or differentiates along a trial, keeps one at each step.

  Raises:
    ValueError: for a size below 1, or a reader with another memory. LSTM, GRU
      and MANN are recurrent networks already.

  References:
    Mishra et al., `A Simple Neural Attentive Meta-Learner
    <https://arxiv.org/abs/1707.03141>`_, 2018, section 5.2.
  """
  check_counts(window=window, units=units)
  network = reader(units)
  init_head, apply_head = output_head(num_outputs, units=units, head=head)

  def init(rng: PRNGKey, inputs: Array) -> Params:
    keys = jax.random.split(rng)
    features = inputs.reshape(-1, inputs.shape[-1])[:1]
    return {
      "reader": network.init(keys[0], features),
      "head": init_head(keys[1]),
    }

  def memory() -> Any:
    """Returns the memory of padding. Its shape is the same for any inputs."""
    features = jnp.zeros((window, 1))
    params = network.init(jax.random.key(0), features)
    labels, mask = jnp.zeros((window, units)), jnp.zeros(window, bool)
    nothing = network.start(params, features)
    return network.read(params, nothing, features, labels, mask)[1]

  small = jax.eval_shape(memory)
  mask = getattr(small, "mask", None)
  if mask is None or mask.shape != (window,):
    raise ValueError(
      "reader: its memory has no mask with one entry for each example; "
      'build_reader("transformer") and build_reader("snail") have.'
    )

  def start() -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), small)

  def step(params: Params, state: Any, inputs: Array) -> tuple[Array, Any]:
    label = jnp.zeros((1, units), inputs.dtype)
    hidden, read = network.read(params["reader"], state, inputs[None], label)
    # The first padding goes or, where there is none, the oldest step.
    gone = jnp.argmin(read.mask)
    kept = jnp.arange(window) + (jnp.arange(window) >= gone)

    def trim(x: Array, before: Any) -> Array:
      grown = [a != b for a, b in zip(x.shape, before.shape, strict=True)]
      return jnp.take(x, kept, axis=grown.index(True))

    return hidden[0], jax.tree.map(trim, read, small)

  def outputs(params: Params, hidden: Array) -> Any:
    return apply_head(params["head"], hidden)

  return Recurrent(init, start, over_leading_axes(step), outputs)
