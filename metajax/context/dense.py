"""Dense layers as pure functions, which the learners in context are built of.

The parameters begin as PyTorch's do, and so as those of the published neural
processes. The biases are not zero, because the inputs are few: all the units of
a layer on one number would have their kinks at zero.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metajax.types import Array, Params, PRNGKey


def init_dense(rng: PRNGKey, num_inputs: int, num_outputs: int) -> Params:
  """Draws weights and biases from U(-b, b) with b = 1 / sqrt(num_inputs)."""
  bound = num_inputs**-0.5
  kernel_key, bias_key = jax.random.split(rng)
  draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
  return {
    "kernel": draw(kernel_key, (num_inputs, num_outputs)),
    "bias": draw(bias_key, (num_outputs,)),
  }


def init_head(num_inputs: int, num_outputs: int) -> Params:
  """Returns a layer of zeros, for the outputs of classes.

  The first predictions are then uniform. Random ones would have a loss that the
  encoder reduces first, by making the features of all examples alike.
  """
  return {
    "kernel": jnp.zeros((num_inputs, num_outputs)),
    "bias": jnp.zeros(num_outputs),
  }


def dense(params: Params, x: Array) -> Array:
  """Maps `[..., num_inputs]` to `[..., num_outputs]`."""
  return x @ params["kernel"] + params["bias"]


def init_mlp(rng: PRNGKey, sizes: Sequence[int]) -> Params:
  """Returns the parameters of dense layers from each size to the next."""
  keys = jax.random.split(rng, len(sizes) - 1)
  return [
    init_dense(key, *pair)
    for key, pair in zip(keys, zip(sizes, sizes[1:], strict=False), strict=True)
  ]


def mlp(params: Params, x: Array) -> Array:
  """Applies dense layers `[..., sizes[0]] -> [..., sizes[-1]]`.

  There is a ReLU between two layers, and none after the last.
  """
  for layer in params[:-1]:
    x = jax.nn.relu(dense(layer, x))
  return dense(params[-1], x)


def init_norm(width: int) -> Params:
  """Returns the parameters of `norm`."""
  return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def norm(params: Params, x: Array) -> Array:
  """Normalises `[..., width]` to mean 0 and variance 1, then scales it."""
  x = x - x.mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
  return params["scale"] * x + params["bias"]
