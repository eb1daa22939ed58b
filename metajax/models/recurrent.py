"""Recurrent networks. Their state contains what they have learned of a task."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax.models.fast_weights import DeltaCell
from metajax.numerics import check_counts
from metajax.types import Array, Params, PRNGKey

Cell = Literal["gru", "lstm", "delta"]
Head = Literal["dueling", "linear", "actor_critic"]


class Recurrent(NamedTuple):
  """A network that reads a sequence, as pure functions for any leading axes.

  Attributes:
    init: `(rng, inputs) -> params`, with inputs `[..., features]`.
    start: `() -> state`, the state before the first input, without leading
      axes.
    read: `(params, state, inputs) -> (hidden, state)`. Reads one input.
    head: `(params, hidden) -> outputs`.
  """

  init: Callable[[PRNGKey, Array], Params]
  start: Callable[[], Any]
  read: Callable[[Params, Any, Array], tuple[Array, Any]]
  head: Callable[[Params, Array], Any]


class _Network(nn.Module):
  cell: Cell
  units: int
  kind: Head
  num_outputs: int

  def setup(self) -> None:
    self.encoder = nn.Dense(self.units)
    cells = {
      "gru": nn.GRUCell,
      "lstm": nn.OptimizedLSTMCell,
      "delta": DeltaCell,
    }
    self.core = cells[self.cell](self.units)
    self.output = nn.Dense(self.num_outputs)
    if self.kind != "linear":
      self.value = nn.Dense(1)
    if self.kind == "dueling":
      self.hidden_output = nn.Dense(self.units)
      self.hidden_value = nn.Dense(self.units)

  def read(self, state: Any, inputs: Array) -> tuple[Array, Any]:
    state, hidden = self.core(state, nn.relu(self.encoder(inputs)))
    return hidden, state

  def head(self, hidden: Array) -> Any:
    if self.kind == "linear":
      return self.output(hidden)
    if self.kind == "actor_critic":
      return self.output(hidden), self.value(hidden)[..., 0]
    advantages = self.output(nn.relu(self.hidden_output(hidden)))
    value = self.value(nn.relu(self.hidden_value(hidden)))
    return value + advantages - advantages.mean(-1, keepdims=True)

  def __call__(self, state: Any, inputs: Array) -> Any:
    hidden, _ = self.read(state, inputs)
    return self.head(hidden)


def recurrent(
  num_outputs: int,
  *,
  units: int = 64,
  cell: Cell = "gru",
  head: Head = "linear",
) -> Recurrent:
  """Builds a recurrent network: a dense layer, a cell, a head.

  Args:
    num_outputs: number of classes or actions.
    units: size of every layer.
    cell: "gru" (Cho et al. 2014), "lstm", or "delta", whose state has a matrix
      for each 32 units (see `models.fast_weights`).
    head: "linear"; "dueling", the values of actions as the value of the state
      plus advantages of mean zero (Wang et al. 2016); or "actor_critic", a pair
      of logits and the value.

  Raises:
    ValueError: for any other cell or head, or a size below 1.
  """
  _check("cell", cell, get_args(Cell))
  _check("head", head, get_args(Head))
  check_counts(num_outputs=num_outputs, units=units)
  network = _Network(cell, units, head, num_outputs)

  def start() -> Any:
    if cell == "delta":
      return DeltaCell.start(units)
    zeros = jnp.zeros(units)
    return zeros if cell == "gru" else (zeros, zeros)

  def init(rng: PRNGKey, inputs: Array) -> Params:
    return network.init(rng, _spread(start(), inputs), inputs)

  def read(params: Params, state: Any, inputs: Array) -> tuple[Array, Any]:
    return network.apply(params, state, inputs, method="read")

  def apply_head(params: Params, hidden: Array) -> Any:
    return network.apply(params, hidden, method="head")

  return Recurrent(init, start, read, apply_head)


def output_head(
  num_outputs: int, *, units: int = 64, head: Head = "linear"
) -> tuple[Callable[[PRNGKey], Params], Callable[[Params, Array], Any]]:
  """Builds the head of `recurrent` alone, for hidden vectors of other networks.

  Args:
    num_outputs: number of classes or actions.
    units: numbers of a hidden vector `[..., units]`.
    head: see `recurrent`.

  Returns:
    `init(rng) -> params` and `apply(params, hidden) -> outputs`.

  Raises:
    ValueError: for any other head.
  """
  _check("head", head, get_args(Head))
  network = _Network("gru", units, head, num_outputs)

  def init(rng: PRNGKey) -> Params:
    return network.init(rng, jnp.zeros(units), method="head")

  def apply(params: Params, hidden: Array) -> Any:
    return network.apply(params, hidden, method="head")

  return init, apply


def unroll(
  network: Recurrent, params: Params, state: Any, inputs: Array, first: Array
) -> tuple[Array, Any]:
  """Reads sequences from a state.

  Args:
    network: from `recurrent`.
    params: the parameters of the network.
    state: `[batch, ...]`, the state before the first inputs.
    inputs: `[time, batch, features]`.
    first: `[time, batch]`, whether these inputs are the first of a task. The
      state is then reset to `network.start` before they are read.

  Returns:
    The hidden vectors `[time, batch, units]`, for `network.head`, and the last
    state.
  """

  def one(state: Any, step: tuple[Array, Array]) -> tuple[Any, Array]:
    inputs, first = step
    state = choose(first, _spread(network.start(), first[:, None]), state)
    hidden, state = network.read(params, state, inputs)
    return state, hidden

  state, hidden = jax.lax.scan(one, state, (inputs, first))
  return hidden, state


def over_leading_axes(step: Callable[..., Any]) -> Callable[..., Any]:
  """Turns `(params, state, inputs [features])` into a `Recurrent.read`."""

  def read(params: Params, state: Any, inputs: Array) -> tuple[Array, Any]:
    one = functools.partial(step, params)
    for _ in inputs.shape[:-1]:
      one = jax.vmap(one)
    return one(state, inputs)

  return read


def choose(which: Array, one: Any, other: Any) -> Any:
  """Selects states `[batch, ...]`: `one` where `which`, else `other`."""
  return jax.tree.map(
    lambda x, y: jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, y),
    one,
    other,
  )


def _check(name: str, given: str, allowed: tuple[str, ...]) -> None:
  if given not in allowed:
    raise ValueError(f"{name}={given!r}: must be one of {allowed}.")


def _spread(state: Any, inputs: Array) -> Any:
  """Gives an initial state the leading axes of the inputs."""
  axes = inputs.shape[:-1]
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (*axes, *x.shape)), state)
