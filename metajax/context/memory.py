"""A memory-augmented network (MANN): a controller and an external memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.context.dense import dense, init_dense
from metajax.models.recurrent import Recurrent, over_leading_axes
from metajax.numerics import check_counts, check_number
from metajax.types import Array, Params, PRNGKey


class External(NamedTuple):
  """The state of a memory-augmented network.

  Attributes:
    hidden: `[units]`, what the controller puts out.
    cell: `[units]`, the cell of the controller, an LSTM.
    slots: `[slots, width]`, the external memory M.
    found: `[reads, width]`, what was read last.
    weights: `[reads, slots]`, where it was read.
    usage: `[slots]`, how much each slot was used of late.
  """

  hidden: Array
  cell: Array
  slots: Array
  found: Array
  weights: Array
  usage: Array


def memory_augmented(
  num_outputs: int,
  *,
  units: int = 200,
  slots: int = 128,
  width: int = 40,
  reads: int = 4,
  decay: float = 0.95,
  sharpened: bool = True,
) -> Recurrent:
  """Builds a controller with a memory that it addresses by content.

  ::

    h_t = LSTM([x_t, r_{t-1}])
    w^r_t(i) = softmax_i(b_t cos(k_t, M_{t-1}(i))),  r_t = sum_i w^r_t(i) M(i)
    w^w_t = a_t w^r_{t-1} + (1 - a_t) w^lu_{t-1}
    M_t(i) = M_{t-1}(i) + w^w_t(i) k_t
    w^u_t = decay w^u_{t-1} + w^r_t + w^w_t

  for each of several heads. k, a in (0, 1) and b >= 0 are functions of h. w^lu
  is 1 at the slots of least usage w^u, as many as there are heads. They are set
  to zero before they are written. The outputs are of `[h_t, r_t]`. Here a step
  reads before it writes, because it would find its own key.

  Args:
    num_outputs: number of classes, or of numbers to predict.
    units: units of the controller.
    slots: slots of the memory.
    width: numbers of a slot.
    reads: number of heads.
    decay: how much of a slot's usage is left after a step.
    sharpened: whether b is learned, as in Neural Turing Machines. If not, it is
      1, as in the paper: no read is then of one slot alone, since cosines are
      at most 1.

  Returns:
    A network for `learners.recurrent_reader`. The defaults are the paper's.

  Raises:
    ValueError: for a size below 1, more reads than slots, or a decay that is
      not from 0 to 1.

  References:
    Santoro et al., `Meta-Learning with Memory-Augmented Neural Networks
    <https://proceedings.mlr.press/v48/santoro16.html>`_, 2016, section 3.
    Graves et al., `Neural Turing Machines
    <https://arxiv.org/abs/1410.5401>`_, 2014, equation 5.
  """
  check_counts(num_outputs=num_outputs, units=units, slots=slots, width=width)
  check_counts(reads=reads)
  if reads > slots:
    raise ValueError(f"reads={reads}: must be at most slots={slots}.")
  check_number("decay", decay, at_least=0, at_most=1)

  def start() -> External:
    return External(
      jnp.zeros(units),
      jnp.zeros(units),
      jnp.zeros((slots, width)),
      jnp.zeros((reads, width)),
      jnp.zeros((reads, slots)),
      jnp.zeros(slots),
    )

  def init(rng: PRNGKey, inputs: Array) -> Params:
    keys = jax.random.split(rng, 5)
    read = inputs.shape[-1] + reads * width + units
    params = {
      "controller": init_dense(keys[0], read, 4 * units),
      "keys": init_dense(keys[1], units, reads * width),
      "gates": init_dense(keys[2], units, reads),
      "output": init_dense(keys[3], units + reads * width, num_outputs),
    }
    if sharpened:
      params["strengths"] = init_dense(keys[4], units, reads)
    return params

  def step(
    params: Params, state: External, inputs: Array
  ) -> tuple[Array, External]:
    x = jnp.concatenate([inputs, state.found.ravel(), state.hidden])
    new, keep, put, out = jnp.split(dense(params["controller"], x), 4)
    cell = jax.nn.sigmoid(keep + 1) * state.cell
    cell += jax.nn.sigmoid(put) * jnp.tanh(new)
    hidden = jax.nn.sigmoid(out) * jnp.tanh(cell)

    keys = jnp.tanh(dense(params["keys"], hidden)).reshape(reads, width)
    scores = _unit(keys) @ _unit(state.slots).T
    if sharpened:
      strengths = jax.nn.softplus(dense(params["strengths"], hidden))
      scores *= strengths[:, None]
    weights = jax.nn.softmax(scores, axis=-1)
    found = weights @ state.slots

    free = least_used(state.usage, reads)
    gates = jax.nn.sigmoid(dense(params["gates"], hidden))[:, None]
    written = gates * state.weights + (1 - gates) * free
    slots = jnp.where(free[:, None] > 0, 0, state.slots) + written.T @ keys
    usage = decay * state.usage + (weights + written).sum(0)
    both = jnp.concatenate([hidden, found.ravel()])
    return both, External(hidden, cell, slots, found, weights, usage)

  def head(params: Params, hidden: Array) -> Array:
    return dense(params["output"], hidden)

  return Recurrent(init, start, over_leading_axes(step), head)


def least_used(usage: Array, count: int) -> Array:
  """Returns `[slots]`, 1 at the `count` slots of least usage, the first ones.

  It has no gradient.
  """
  _, chosen = jax.lax.top_k(-jax.lax.stop_gradient(usage), count)
  return jnp.zeros_like(usage).at[chosen].set(1)


def _unit(x: Array) -> Array:
  """Scales vectors to length 1. Zeros stay zeros."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)
