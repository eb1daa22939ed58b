"""Test-time-training layers: their hidden state is a model that is trained."""

import functools

import jax
import jax.numpy as jnp

from metajax.context.dense import (
  dense,
  init_dense,
  init_mlp,
  init_norm,
  mlp,
  norm,
)
from metajax.context.reconstruction import (
  Trained,
  added,
  learn,
  untrained,
)
from metajax.models.recurrent import Recurrent, over_leading_axes
from metajax.numerics import check_counts
from metajax.types import Array, Params, PRNGKey

KERNEL = 4  # Tokens that a convolution of a block sees, as in Mamba.


def ttt_linear(
  num_outputs: int,
  *,
  width: int = 64,
  heads: int = 4,
  layers: int = 2,
  minibatch: int = 16,
) -> Recurrent:
  """Builds blocks with a hidden state that is a model in training (TTT-linear).

  ::

    y_t = silu(causal convolution of norm(x_t))
    k_t, v_t, q_t = K y_t, V y_t, Q y_t,   rate_t = sigmoid(r . y_t) / c
    W_t = W_{t-1} - rate_t grad |f(k_t; W_{t'}) - v_t|^2
    x_t <- x_t + O f(q_t; W_t),            f(x; W) = x + norm(W x + b)
    x_t <- x_t + mlp(norm(x_t))

  for each of several heads of c numbers. W_0 and the views K, V, Q are learned
  by the outer loop. The convolution is over the last four tokens, as in the
  backbone of Mamba, so that a token can be reconstructed from the one before.

  Args:
    num_outputs: number of classes, or of numbers to predict.
    width: width of the tokens.
    heads: number of heads; must divide the width.
    layers: number of blocks.
    minibatch: see `learn`.

  Returns:
    A network for `learners.recurrent_reader`. The defaults are smaller than the
    paper's 768 numbers and 12 blocks; its minibatch is 16.

  Raises:
    ValueError: if a size is less than 1, or `heads` does not divide `width`.

  References:
    Sun et al., `Learning to (Learn at Test Time): RNNs with Expressive Hidden
    States <https://arxiv.org/abs/2407.04620>`_, 2024, sections 2.3 to 2.7.
  """
  check_counts(num_outputs=num_outputs, width=width, heads=heads)
  check_counts(layers=layers, minibatch=minibatch)
  if width % heads:
    raise ValueError(
      f"width={width}, heads={heads}: heads must divide the width."
    )
  size = width // heads

  def init(rng: PRNGKey, inputs: Array) -> Params:
    keys = jax.random.split(rng, 3)
    blocks = jax.vmap(functools.partial(_init_block, width=width, heads=heads))
    return {
      "input": init_dense(keys[0], inputs.shape[-1], width),
      "blocks": blocks(jax.random.split(keys[1], layers)),
      "norm": init_norm(width),
      "output": init_dense(keys[2], width, num_outputs),
    }

  def start() -> tuple[Trained, Array]:
    like = {
      "kernel": jnp.zeros((layers, heads, size, size)),
      "bias": jnp.zeros((layers, heads, size)),
    }
    trained = untrained(like)._replace(seen=jnp.zeros((layers, heads)))
    return trained, jnp.zeros((layers, KERNEL - 1, width))

  def step(
    params: Params, state: tuple[Trained, Array], inputs: Array
  ) -> tuple[Array, tuple[Trained, Array]]:
    def one(x: Array, layer: tuple) -> tuple[Array, tuple[Trained, Array]]:
      weights, trained, past = layer
      return _block(weights, trained, past, x, minibatch)

    x = dense(params["input"], inputs)
    x, state = jax.lax.scan(one, x, (params["blocks"], *state), unroll=layers)
    return norm(params["norm"], x), state

  def head(params: Params, hidden: Array) -> Array:
    return dense(params["output"], hidden)

  return Recurrent(init, start, over_leading_axes(step), head)


def _init_block(rng: PRNGKey, width: int, heads: int) -> Params:
  names = ("keys", "values", "queries", "merge")
  *keys, rate_key, mlp_key, state_key, taps_key = jax.random.split(rng, 8)
  size = width // heads
  dense_of = functools.partial(init_dense, num_inputs=width, num_outputs=width)
  taps = jax.random.uniform(taps_key, (KERNEL, width), minval=-1, maxval=1)
  return {
    **{name: dense_of(key) for name, key in zip(names, keys, strict=True)},
    "rates": init_dense(rate_key, width, heads),
    "mlp": init_mlp(mlp_key, [width, 4 * width, width]),
    "norms": [init_norm(width), init_norm(width)],
    "taps": taps * KERNEL**-0.5,
    "learner": {
      "kernel": 0.02 * jax.random.normal(state_key, (heads, size, size)),
      "bias": jnp.zeros((heads, size)),
    },
    "learner_norm": jax.vmap(lambda _: init_norm(size))(jnp.arange(heads)),
  }


def _block(
  params: Params, state: Trained, past: Array, x: Array, minibatch: int
) -> tuple[Array, tuple[Trained, Array]]:
  """Reads one token `x [width]` after `past [KERNEL - 1, width]`."""
  tokens = jnp.concatenate([past, norm(params["norms"][0], x)[None]])
  y = jax.nn.silu((params["taps"] * tokens).sum(0))
  heads = params["rates"]["bias"].size
  views = jnp.stack(
    [
      dense(params[name], y).reshape(heads, -1)
      for name in ("keys", "values", "queries")
    ],
    axis=1,
  )
  rates = jax.nn.sigmoid(dense(params["rates"], y)) / views.shape[-1]

  def one(
    initial: Params, scale: Params, state: Trained, tokens: Array, rate: Array
  ) -> tuple[Array, Trained]:
    def f(weights: Params, z: Array) -> Array:
      return z + norm(scale, dense(weights, z))

    key, value, query = tokens
    state = learn(f, initial, state, key, value, rate, minibatch)
    return f(added(initial, state.now), query), state

  learners = params["learner"], params["learner_norm"]
  out, state = jax.vmap(one)(*learners, state, views, rates)
  x = x + dense(params["merge"], out.ravel())
  x = x + mlp(params["mlp"], norm(params["norms"][1], x))
  return x, (state, tokens[1:])
