"""Inputs of models: a function that is applied to them first, and images."""

import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from metajax.forward import Forward, forward
from metajax.types import Array, Model, Params, PRNGKey


def on_inputs(model: Model, change: Callable[[Any], Any]) -> Forward:
  """Returns a model that applies the given model to `change(inputs)`.

  The parameters are those of the given model. For example, `change` can convert
  pixels in uint8 to standardised numbers. A data set in uint8 needs less
  memory.

  Args:
    model: any model.
    change: a function of the inputs of a batch, `[n, ...]`.

  Returns:
    A model.
  """
  functions = forward(model)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    return functions.init(rng, change(inputs))

  def train(
    params: Params, inputs: Any, rng: PRNGKey, *, mask: Array | None = None
  ) -> tuple[Any, Params]:
    return functions.train(params, change(inputs), rng, mask=mask)

  def apply(params: Params, inputs: Any, *, mask: Array | None = None) -> Any:
    return functions.apply(params, change(inputs), mask=mask)

  return Forward(init, train, apply)


def check_images(images: Array) -> None:
  """Checks that inputs are images as the networks of metajax take them.

  Args:
    images: `[n, height, width, channels]`.

  Raises:
    ValueError: if they have another number of axes.

  Warns:
    UserWarning: for uint8, and for shapes like those of PyTorch, `[n, 3, 32,
      32]`.
  """
  if jnp.ndim(images) != 4:
    raise ValueError(
      f"inputs of shape {jnp.shape(images)}: must be images [n, height, width, "
      "channels]. Grey images get their channel by images[..., None]."
    )
  _, rows, columns, last = images.shape
  if rows in (1, 3) and columns == last > 4:
    warnings.warn(
      f"inputs of shape {images.shape} are images of {rows} x {columns} pixels "
      f"with {last} channels here. If the channels come first, give "
      "images.transpose(0, 2, 3, 1).",
      stacklevel=3,
    )
  if images.dtype == jnp.uint8:
    warnings.warn(
      "inputs: uint8 images are numbers of 0 to 255 here. Few-shot tasks have "
      "them in [0, 1]: divide by 255.",
      stacklevel=3,
    )
