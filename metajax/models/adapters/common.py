"""What the adapters share: the result, its switches, and masks."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from metajax.forward import Forward, forward
from metajax.types import Array, Model, Params, PRNGKey

# What modules call the switch between training and evaluation.
TRAINING = ("train", "training", "is_training")
EVALUATION = ("deterministic", "use_running_average", "inference", "eval")


class AdaptedModel(NamedTuple):
  """A `Model` of another library's module.

  Attributes:
    init: `(rng, inputs) -> params`.
    apply: `(params, inputs, mask=None) -> predictions`, in evaluation.
    train: `(params, inputs, rng, mask=None) -> (predictions, params)`, in
      training; the parameters have new state. Without a key, `rng=None`, it
      normalises as in training, but nothing is random: dropout is off.
  """

  init: Callable[[PRNGKey, Any], Params]
  apply: Callable[..., Any]
  train: Callable[..., tuple[Any, Params]]


def by_batch_statistics(model: Model) -> Forward:
  """Lets a model normalise by the batch in evaluation, too.

  Predictions are transductive: inputs that are predicted together see each
  other. Dropout stays off, and running statistics are not looked at.

  Args:
    model: of an adapter, or a `flax.linen.Module`. The evaluation of a model
      that has no `train` stays as it is.

  Returns:
    A model whose `apply` is its `train` without a key.
  """
  functions = forward(model)

  def apply(params: Params, inputs: Any, *, mask: Array | None = None) -> Any:
    return functions.train(params, inputs, None, mask=mask)[0]

  return functions._replace(apply=apply)


def only_function(build: Any, library: str, example: str) -> None:
  """Raises a `ValueError` for a module in the place of what builds one."""
  modules = sys.modules.get(library)
  is_module = modules is not None and isinstance(build, modules.Module)
  if is_module or not callable(build):
    raise ValueError(
      f"build: a {type(build).__name__} given, must be a function that makes a "
      f"module: {example}."
    )


def parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
  """Returns the arguments of a function by name."""
  return inspect.signature(fn).parameters


def switches(
  arguments: Mapping[str, Any], *, training: bool
) -> dict[str, bool]:
  """Returns the keywords that put a call into training or evaluation."""
  found = {name: training for name in TRAINING if name in arguments}
  return found | {n: not training for n in EVALUATION if n in arguments}


def mask_keyword(
  arguments: Mapping[str, Any], mask: Array | None
) -> dict[str, Array]:
  """Returns the mask as a keyword, if there is one and the call takes it."""
  return {"mask": mask} if mask is not None and "mask" in arguments else {}


def check_mask(
  arguments: Mapping[str, Any],
  mask: Array | None,
  old: Any,
  new: Any,
  who: str,
) -> None:
  """Raises a `ValueError` where padding has got into running statistics.

  It has if a mask was not passed on and the state has changed: a leaf that is
  left alone is the very same object before and after.
  """
  if mask is None or "mask" in arguments:
    return
  if moved(old, new):
    raise ValueError(
      f"{who} has running statistics but takes no `mask`, which this batch "
      "has: its padding would count. Give the module's call an argument `mask` "
      "(flax's BatchNorm takes it)."
    )


def moved(old: Any, new: Any) -> bool:
  """Tells whether any leaf of a tree has been replaced."""
  pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
  return any(a is not b for a, b in pairs)
