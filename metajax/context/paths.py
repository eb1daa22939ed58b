"""The two encodings of neural processes, and the network behind them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.batches import real
from metajax.context.dense import init_mlp, mlp
from metajax.context.encoders import (
  HEADS,
  init_cross,
  init_pool,
  pool,
  recall,
  remember,
)
from metajax.context.objectives import numbers, vectors
from metajax.numerics import check_counts, check_number
from metajax.types import Array, Batch, Params, PRNGKey

LEAST_SCALE = 0.1


class Paths(NamedTuple):
  """The two encodings of a support, and the network that predicts from them.

  Attributes:
    init: `(rng, inputs) -> params`.
    local: `(params, support) -> memory`, which `at` asks.
    at: `(params, memory, inputs [n, ...]) -> [n, width]`.
    whole: `(params, support) -> [width]`.
    decode: `(params, inputs [n, ...], local [n, width], whole [width]) ->
      (mean [n, d], scale [n, d])`.
  """

  init: Callable[[PRNGKey, Any], Params]
  local: Callable[[Params, Batch], Any]
  at: Callable[[Params, Any, Any], Array]
  whole: Callable[[Params, Batch], Array]
  decode: Callable[[Params, Any, Array, Array], tuple[Array, Array]]


def paths(
  num_outputs: int,
  width: int,
  least_scale: float,
  *,
  attends: bool,
  num_latent: int | None = None,
) -> Paths:
  """Builds the networks of a neural process.

  Args:
    num_outputs: d, numbers of a target.
    width: width of all layers.
    least_scale: the least standard deviation of a prediction.
    attends: whether queries attend to the support.
    num_latent: numbers of the latent variable, of which `whole` returns twice
      as many; None: there is none.

  Raises:
    ValueError: if the width is less than 1, or not a multiple of the number of
      heads of a network that attends; if the least scale is not from 0 to 1.
  """
  check_counts(num_outputs=num_outputs, width=width)
  check_number("least_scale", least_scale, at_least=0, below=1)
  if attends and width % HEADS:
    raise ValueError(
      f"width={width}: must be a multiple of {HEADS}, the number of heads."
    )
  summary = width if num_latent is None else num_latent
  num_whole = width if num_latent is None else 2 * num_latent

  def init(rng: PRNGKey, inputs: Any) -> Params:
    near_key, whole_key, decoder_key = jax.random.split(rng, 3)
    size = vectors(inputs).shape[1]
    point = size + num_outputs
    near = (
      init_cross(near_key, size, point, width)
      if attends
      else init_pool(near_key, point, width, width, False)
    )
    sizes = [size + width + summary, width, width, 2 * num_outputs]
    return {
      "near": near,
      "whole": init_pool(whole_key, point, width, num_whole, attends),
      "decoder": init_mlp(decoder_key, sizes),
    }

  def points(support: Batch) -> tuple[Array, Array, Array]:
    x = vectors(support.inputs)
    y = numbers(support, num_outputs)
    return x, jnp.concatenate([x, y], axis=1), real(support)

  def local(params: Params, support: Batch) -> Any:
    x, xy, mask = points(support)
    if attends:
      return remember(params["near"], x, xy, mask), mask
    return pool(params["near"], xy, mask)

  def at(params: Params, memory: Any, inputs: Any) -> Array:
    x = vectors(inputs)
    if attends:
      return recall(params["near"], memory[0], x, memory[1])
    return jnp.broadcast_to(memory, (len(x), width))

  def whole(params: Params, support: Batch) -> Array:
    _, xy, mask = points(support)
    return pool(params["whole"], xy, mask)

  def decode(
    params: Params, inputs: Any, local: Array, whole: Array
  ) -> tuple[Array, Array]:
    x = vectors(inputs)
    everywhere = jnp.broadcast_to(whole, (len(x), summary))
    hidden = jnp.concatenate([local, everywhere, x], axis=1)
    mean, scale = jnp.split(mlp(params["decoder"], hidden), 2, axis=1)
    rest = 1 - least_scale
    return mean, least_scale + rest * jax.nn.softplus(scale)

  return Paths(init, local, at, whole, decode)
