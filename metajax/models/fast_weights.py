"""A recurrent cell whose state is a matrix of associations between inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax.types import Array

WIDTH = 32  # The approximate width of a head.

FastWeights = tuple[Array, Array]  # The matrices, and the last inputs.


class DeltaCell(nn.Module):
  """Fast weights that learn by the delta rule, one step for each input.

  The last input is the key, and the present input is its value::

    W_t = W_{t-1} + b_t (v_t - W_{t-1} k_t) k_t^T
    h_t = relu(A [W_t q_t, x_t] + a)
    k_t = unit(silu(K x_{t-1})),  q_t = unit(silu(Q x_t)),  v_t = V x_t
    b_t = sigmoid(B x_t + c)

  in several heads, each with its own W and b. An update is a step of gradient
  descent on |W k - v|^2 / 2 with step size b. One presentation therefore
  associates a label with the example before it, or a reward with the action
  before it. Schlag et al. take key and value from the same input. Here the key
  is one step earlier, because a label or a reward comes one step after its
  cause.

  Attributes:
    units: the size of h, and approximately of all heads together.

  References:
    Schlag et al., `Linear Transformers Are Secretly Fast Weight Programmers
    <https://arxiv.org/abs/2102.11174>`_, 2021, section 4.2.
    Yang et al., `Parallelizing Linear Transformers with the Delta Rule over
    Sequence Length <https://arxiv.org/abs/2406.06484>`_, 2024: SiLU and keys of
    unit length.
  """

  units: int

  @nn.compact
  def __call__(
    self, state: FastWeights, inputs: Array
  ) -> tuple[FastWeights, Array]:
    weights, before = state
    heads, width, _ = weights.shape[-3:]

    def project(name: str, x: Array) -> Array:
      y = nn.Dense(heads * width, use_bias=False, name=name)(x)
      return y.reshape(*y.shape[:-1], heads, width)

    keys = _unit(nn.silu(project("key", before)))
    queries = _unit(nn.silu(project("query", inputs)))
    values = project("value", inputs)
    rates = nn.sigmoid(nn.Dense(heads, name="rate")(inputs))[..., None]
    errors = values - _apply(weights, keys)
    weights += (rates * errors)[..., :, None] * keys[..., None, :]
    found = _apply(weights, queries)
    found = found.reshape(*found.shape[:-2], -1)
    hidden = nn.Dense(self.units, name="output")(
      jnp.concatenate([found, inputs], axis=-1)
    )
    return (weights, inputs), nn.relu(hidden)

  @staticmethod
  def start(units: int) -> FastWeights:
    """Returns the state before the first input."""
    heads = max(1, units // WIDTH)
    width = units // heads
    return jnp.zeros((heads, width, width)), jnp.zeros(units)


def _apply(weights: Array, vectors: Array) -> Array:
  """Multiplies matrices `[..., rows, columns]` by vectors `[..., columns]`."""
  return (weights @ vectors[..., None])[..., 0]


def _unit(x: Array) -> Array:
  """Scales vectors to length 1. Zeros, as in the first step, stay zeros."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
