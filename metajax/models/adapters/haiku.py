"""Models of haiku's transformed functions."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from metajax.models.adapters.common import (
  AdaptedModel,
  check_mask,
  mask_keyword,
  parameters,
  switches,
)
from metajax.types import Array, Params, PRNGKey, State

if TYPE_CHECKING:
  import haiku as hk


def from_haiku(
  transformed: "hk.Transformed | hk.TransformedWithState",
  *,
  train: Mapping[str, Any] | None = None,
  evaluation: Mapping[str, Any] | None = None,
) -> AdaptedModel:
  """Makes a model of what `haiku.transform` or `transform_with_state` return.

  Its parameters are `{"params": weights, "state": State(...)}`, both as haiku
  has them. Learners do it by themselves.

  A function that has a switch between training and evaluation may draw in
  evaluation, too, as `dropout(next_rng_key(), rate if is_training else 0.0, x)`
  does: it is given a constant key there. One without a switch is given none.

  Args:
    transformed: of a function `(inputs) -> predictions`, which is given `mask=`
      if it has such an argument and the batch a mask.
    train: keywords of the function in training; None: `{"is_training": True}`
      if it has such an argument, likewise train, training, deterministic,
      use_running_average, inference, eval.
    evaluation: those in evaluation, likewise.

  Raises:
    ValueError: if it is no transformed function; in use, if a batch has a mask,
      and the function changes its state but has no argument `mask`: padding
      would be counted.
  """
  import haiku as hk

  if not isinstance(transformed, (hk.Transformed, hk.TransformedWithState)):
    raise ValueError(
      f"transformed: a {type(transformed).__name__} given, must be haiku."
      "transform_with_state(f) or haiku.transform(f)."
    )
  has_state = isinstance(transformed, hk.TransformedWithState)
  arguments = parameters(transformed.apply)
  takes_key = "rng" in arguments
  if train is None:
    train = switches(arguments, training=True)
  if evaluation is None:
    evaluation = switches(arguments, training=False)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    # In training, since haiku makes running averages there.
    made = transformed.init(rng, inputs, **train)
    weights, state = made if has_state else (made, {})
    return {"params": weights, "state": State(state)}

  def run(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None,
    keywords: Mapping[str, Any],
  ) -> tuple[Any, Params]:
    state = params["state"].value
    if rng is None and keywords:
      rng = jax.random.key(0)
    before = (params["params"], state) if has_state else (params["params"],)
    out = transformed.apply(
      *before,
      *((rng,) if takes_key else ()),
      inputs,
      **keywords,
      **mask_keyword(arguments, mask),
    )
    predictions, new = out if has_state else (out, state)
    check_mask(arguments, mask, state, new, "haiku's function")
    return predictions, {**params, "state": State(new)}

  def apply(params: Params, inputs: Any, mask: Array | None = None) -> Any:
    return run(params, inputs, None, mask, evaluation)[0]

  def train_pass(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None = None,
  ) -> tuple[Any, Params]:
    if rng is not None:
      return run(params, inputs, rng, mask, train)
    with hk.intercept_methods(_normalize_by_batch):
      return run(params, inputs, rng, mask, evaluation)

  return AdaptedModel(init, apply, train_pass)


def _normalize_by_batch(
  call: Callable[..., Any], args: tuple, keywords: dict, context: Any
) -> Any:
  """Lets `haiku.BatchNorm(inputs, is_training)` train, whatever it is told."""
  import haiku as hk

  is_norm = isinstance(context.module, hk.BatchNorm)
  if is_norm and context.method_name == "__call__":
    if len(args) > 1:
      args = (args[0], True, *args[2:])
    else:
      keywords = {**keywords, "is_training": True}
  return call(*args, **keywords)
