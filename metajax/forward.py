"""Calls any model in the same way, with or without training, state and mask."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.types import Array, Model, Params, PRNGKey, State


class Forward(NamedTuple):
  """The functions of a model, with the same arguments for every model.

  Attributes:
    init: `(rng, inputs) -> params`.
    train: `(params, inputs, rng, *, mask=None) -> (predictions, params)`, for
      training. The returned parameters differ in their state only.
    apply: `(params, inputs, *, mask=None) -> predictions`, for evaluation.
  """

  init: Callable[[PRNGKey, Any], Params]
  train: Callable[..., tuple[Any, Params]]
  apply: Callable[..., Any]


def forward(model: Model) -> Forward:
  """Returns the functions of any model.

  `flax.linen` modules and transformed haiku functions are converted by
  `models.adapters.from_linen` and `from_haiku`. A model without `train` uses
  `apply` in training, too.

  Raises:
    ValueError: if the argument is not a model. The message says which adapter
      makes one of it.
  """
  if isinstance(model, Forward):
    return model
  linen = sys.modules.get("flax.linen")
  if linen is not None and isinstance(model, linen.Module):
    from metajax.models.adapters import from_linen

    model = from_linen(model)
  haiku = sys.modules.get("haiku")
  if haiku is not None and isinstance(
    model, (haiku.Transformed, haiku.TransformedWithState)
  ):
    from metajax.models.adapters import from_haiku

    model = from_haiku(model)
  if not callable(getattr(model, "apply", None)):
    raise ValueError(
      f"model: a {type(model).__name__} is no init(rng, inputs) and "
      "apply(params, inputs); metajax.models.adapters makes one of flax.nnx "
      "and equinox modules (from_nnx, from_equinox)."
    )
  # A model without `init` can still be used with given parameters.
  init = getattr(model, "init", None) or _no_init
  apply = with_mask(model.apply)
  trains = getattr(model, "train", None)
  if trains is None:

    def train(params, inputs, rng, mask=None):
      del rng
      return apply(params, inputs, mask=mask), params

  else:
    train = with_mask(trains)
  return Forward(init, _learning_nothing(train), _never_empty(apply))


def _never_empty(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Shows a model the padding of a batch that is padding alone.

  Such a batch has no statistics. Those of the padding are finite, and what they
  normalise has no effect.
  """

  def call(*arguments: Any, mask: Array | None = None) -> Any:
    if mask is not None:
      mask = jnp.asarray(mask, bool)
      mask = mask | ~mask.any()
    return fn(*arguments, mask=mask)

  return call


def _learning_nothing(train: Callable[..., Any]) -> Callable[..., Any]:
  """Keeps the state of a model where a batch is padding alone."""
  whole = _never_empty(train)

  def call(
    params: Params, inputs: Any, rng: PRNGKey, mask: Array | None = None
  ) -> tuple[Any, Params]:
    outputs, new = whole(params, inputs, rng, mask=mask)
    if mask is None:
      return outputs, new
    some = jnp.asarray(mask, bool).any()

    def chosen(new: Any, old: Any) -> Any:
      if not isinstance(new, State):
        return new
      return jax.tree.map(lambda x, y: jnp.where(some, x, y), new, old)

    return outputs, jax.tree.map(
      chosen, new, params, is_leaf=lambda x: isinstance(x, State)
    )

  return call


def _no_init(rng: PRNGKey, inputs: Any) -> Params:
  raise ValueError("model: has no init(rng, inputs), which is needed here.")


def stateless(model: Model, who: str) -> Forward:
  """Like `forward`, for callers that cannot update running statistics.

  Args:
    model: any model.
    who: the name of the caller, for the message.

  Raises:
    ValueError: from `init`, if the model has running statistics.
  """
  functions = forward(model)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    params = functions.init(rng, inputs)
    check_stateless(params, who)
    return params

  return functions._replace(init=init)


def check_stateless(params: Params, who: str) -> None:
  """Raises a `ValueError` if parameters have `State` nodes, see `stateless`."""
  leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, State))
  if any(isinstance(leaf, State) for leaf in leaves):
    raise ValueError(
      f"model: keeps running statistics, which {who} does not update; "
      "normalise by the batch or in groups."
    )


def with_mask(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Lets any function be called with `mask`; ignores it if `fn` has none."""
  takes = takes_mask(fn)

  def call(*arguments: Any, mask: Array | None = None) -> Any:
    if takes and mask is not None:
      return fn(*arguments, mask=mask)
    return fn(*arguments)

  return call


def takes_mask(fn: Callable[..., Any]) -> bool:
  """Tells whether a function has an argument called `mask`."""
  try:
    return "mask" in inspect.signature(fn).parameters
  except (TypeError, ValueError):  # Some builtins have no signature.
    return False
