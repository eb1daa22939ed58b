"""The convolutional conditional neural process in one dimension (ConvCNP)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.batches import real
from metajax.context.dense import dense, init_dense
from metajax.context.objectives import maximum_likelihood, numbers, vectors
from metajax.numerics import check_counts, check_number, check_range
from metajax.predictive import Normal
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
)


def convolutional_process(
  *,
  num_outputs: int = 1,
  bounds: tuple[float, float] = (-2.0, 2.0),
  margin: float = 0.5,
  density: int = 32,
  width: int = 32,
  layers: int = 8,
  kernel: int = 9,
  least_scale: float = 0.01,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Predicts by a convolution over the line on which the support lies.

  ::

    h_0(t) = sum_i k(t - x_i),    h(t) = sum_i k(t - x_i) y_i / h_0(t)
    r = CNN(h_0, h on a grid),    y ~ N(m(x), s(x)^2)

  with m and s linear in sum_t k'(x - t) r(t). The kernels k and k' are squared
  exponentials with learned lengths. If all inputs move by a whole number of
  grid points, then so do the predictions, as long as nothing touches the ends
  of the grid. `adapt` computes r, so that `predict` costs the queries only.

  Args:
    num_outputs: d, numbers of a target.
    bounds: the interval of inputs. Those beyond the margin are refused if they
      are known; the network cannot see them.
    margin: how far the grid extends beyond the bounds.
    density: grid points for each unit of the inputs.
    width: channels of the CNN.
    layers: residual convolutions.
    kernel: grid points of a convolution, an odd number.
    least_scale: the least standard deviation, in units of the targets.
    metrics: `(predictions, targets) -> scalar` functions of the query, reported
      by `meta_grad` beside "loss".

  Returns:
    A `MetaLearner` that predicts a `Normal` of `[n, d]`. Inputs are `[n, 1]`.

  Raises:
    ValueError: for bounds that are no interval, an even kernel, or sizes less
      than 1. In use, for inputs that are not one number each, or beyond the
      grid.

  References:
    Gordon et al., `Convolutional Conditional Neural Processes
    <https://arxiv.org/abs/1910.13556>`_, 2020, section 4 and figure 1: "off the
    grid".
  """
  check_range("bounds", bounds)
  check_number("margin", margin, at_least=0, below=jnp.inf)
  check_counts(num_outputs=num_outputs, width=width, layers=layers)
  check_counts(kernel=kernel)
  check_number("density", density, above=0)
  check_number("least_scale", least_scale, at_least=0)
  if kernel % 2 == 0:
    raise ValueError(f"kernel={kernel}: must be odd.")
  low, high = bounds[0] - margin, bounds[1] + margin
  line = functools.partial(_line, low, high)
  size = 1 + round((high - low) * density)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    line(inputs)
    first_key, last_key, *keys = jax.random.split(rng, 2 + layers)
    # About two grid points.
    log_length = jnp.log(jnp.asarray(2.0 / density))
    scale = (kernel * width) ** -0.5
    shape = (kernel, width, width)
    return {
      "log_lengths": jnp.stack([log_length, log_length]),
      "first": init_dense(first_key, 1 + num_outputs, width),
      "convolutions": {
        "kernel": jnp.stack(
          [scale * jax.random.normal(key, shape) for key in keys]
        ),
        "bias": jnp.zeros((layers, width)),
      },
      "last": init_dense(last_key, width, 2 * num_outputs),
    }

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    grid = jnp.linspace(low, high, size)
    x = line(support.inputs, support.mask)
    weights = _kernel(grid, x, meta_params["log_lengths"][0])
    weights = jnp.where(real(support), weights, 0)
    total = weights.sum(1, keepdims=True)
    values = weights @ numbers(support, num_outputs) / (total + 1e-8)
    x = dense(meta_params["first"], jnp.concatenate([total, values], axis=1))

    def layer(x: Array, weights: Params) -> tuple[Array, None]:
      return x + _convolve(jax.nn.relu(x), **weights), None

    x, _ = jax.lax.scan(layer, x, meta_params["convolutions"])
    return {"params": meta_params, "grid": grid, "values": x}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Normal:
    params = task_params["params"]
    weights = _kernel(
      line(inputs, mask), task_params["grid"], params["log_lengths"][1]
    )
    hidden = weights @ jax.nn.relu(task_params["values"])
    mean, scale = jnp.split(dense(params["last"], hidden), 2, axis=1)
    return Normal(mean, least_scale + jax.nn.softplus(scale))

  return maximum_likelihood(
    init, adapt, predict, metrics, num_outputs=num_outputs
  )


def _line(
  low: float, high: float, inputs: Any, mask: Array | None = None
) -> Array:
  """Returns inputs `[n, 1]` as `[n]`, and checks real ones that are known."""
  x = vectors(inputs)
  if x.shape[1] != 1:
    raise ValueError(
      f"inputs of {x.shape[1]} numbers: must be one number each; take another "
      "learner for more."
    )
  if not any(isinstance(value, jax.core.Tracer) for value in (x, mask)):
    known = np.asarray(x) if mask is None else np.asarray(x)[np.asarray(mask)]
    if known.size and not low <= known.min() <= known.max() <= high:
      raise ValueError(
        f"inputs from {known.min():g} to {known.max():g}: must be from {low:g} "
        f"to {high:g}, where the grid is; give wider bounds."
      )
  return x[:, 0]


def _kernel(x: Array, y: Array, log_length: Array) -> Array:
  """Returns `exp(-(x_i - y_j)^2 / 2 l^2)`, `[n, m]`."""
  z = (x[:, None] - y) * jnp.exp(-log_length)
  return jnp.exp(-0.5 * jnp.square(z))


def _convolve(x: Array, kernel: Array, bias: Array) -> Array:
  """Convolves `[points, channels]` with `[points, channels, channels]`."""
  out = jax.lax.conv_general_dilated(
    x[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
  )
  return out[0] + bias
