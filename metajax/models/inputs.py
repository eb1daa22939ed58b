"""Models that apply a function to their inputs first."""

from collections.abc import Callable
from typing import Any

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
