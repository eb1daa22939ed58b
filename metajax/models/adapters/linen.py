"""Models of flax.linen modules."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from metajax.models.adapters.common import (
  AdaptedModel,
  check_mask,
  mask_keyword,
  parameters,
  switches,
)
from metajax.types import Array, Params, PRNGKey, State


def from_linen(
  module: nn.Module,
  *,
  train: Mapping[str, Any] | None = None,
  evaluation: Mapping[str, Any] | None = None,
) -> AdaptedModel:
  """Makes a model of a `flax.linen.Module`, which learners do by themselves.

  Its parameters are the module's variables; every collection but "params" is
  `State`. The stream "dropout" is the key that `train` is given; all others are
  drawn from it, too.

  Args:
    module: called as `module(inputs)`; with `mask=` if `__call__` has such an
      argument and the batch a mask.
    train: keywords of the call in training; None: `{"train": True}` if
      `__call__` has such an argument, likewise training, is_training,
      deterministic, use_running_average, inference, eval.
    evaluation: those in evaluation, likewise.

  Raises:
    ValueError: in use, if a batch has a mask, and the module changes its state
      but has no argument `mask`: padding would be counted; or if parameters
      hold variables other than "params" that are not `State`.
  """
  arguments = parameters(type(module).__call__)
  if train is None:
    train = switches(arguments, training=True)
  if evaluation is None:
    evaluation = switches(arguments, training=False)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    variables = module.init(rng, inputs, **evaluation)
    return {k: v if k == "params" else State(v) for k, v in variables.items()}

  def call(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None,
    keywords: Mapping[str, Any],
  ) -> tuple[Any, Params]:
    _check_state(params)
    kept = {k: v.value for k, v in params.items() if isinstance(v, State)}
    rngs = None
    if rng is not None:
      rngs = {"params": jax.random.fold_in(rng, 1), "dropout": rng}
    predictions, new = module.apply(
      {**params, **kept},
      inputs,
      rngs=rngs,
      mutable=list(kept),
      **{**keywords, **mask_keyword(arguments, mask)},
    )
    check_mask(arguments, mask, kept, new, type(module).__name__)
    return predictions, {**params, **{k: State(v) for k, v in new.items()}}

  def apply(params: Params, inputs: Any, mask: Array | None = None) -> Any:
    return call(params, inputs, None, mask, evaluation)[0]

  def train_pass(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None = None,
  ) -> tuple[Any, Params]:
    with _without_dropout() if rng is None else contextlib.nullcontext():
      return call(params, inputs, rng, mask, train)

  return AdaptedModel(init, apply, train_pass)


def _without_dropout() -> contextlib.AbstractContextManager[None]:
  def skip(
    call: Callable[..., Any], args: tuple, keywords: dict, context: Any
  ) -> Any:
    is_dropout = isinstance(context.module, nn.Dropout)
    if is_dropout and context.method_name == "__call__":
      return args[0] if args else keywords["inputs"]
    return call(*args, **keywords)

  return nn.intercept_methods(skip)


def _check_state(params: Params) -> None:
  bare = [
    k for k, v in params.items() if k != "params" and not isinstance(v, State)
  ]
  if bare:
    raise ValueError(
      f"params: the variables {bare} are no weights, and must be metajax.types."
      "State; take the parameters of the learner's init, or wrap them as "
      f"State(variables[{bare[0]!r}])."
    )
