"""Models of other libraries' modules, each in one line.

What they make is a `Model` with a `train`: weights as the library has them,
running statistics under `State` nodes, and a key for dropout and its like.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from metajax.types import Array, Params, PRNGKey, State

# What modules call the switch between training and evaluation.
TRAINING = ("train", "training", "is_training")
EVALUATION = ("deterministic", "use_running_average", "inference", "eval")


class AdaptedModel(NamedTuple):
  """A `Model` of another library's module.

  Attributes:
    init: `(rng, inputs) -> params`.
    apply: `(params, inputs, mask=None) -> predictions`, in evaluation.
    train: `(params, inputs, rng, mask=None) -> (predictions, params)`, in
      training; the parameters have new state.
  """

  init: Callable[[PRNGKey, Any], Params]
  apply: Callable[..., Any]
  train: Callable[..., tuple[Any, Params]]


def by_batch_statistics(model: AdaptedModel) -> AdaptedModel:
  """Lets a model normalise by the batch in evaluation, too.

  Its `apply` is then its `train` without a key, so a module with dropout must
  have another switch for it. Predictions are transductive: queries that are
  predicted together see each other.
  """

  def apply(params: Params, inputs: Any, mask: Array | None = None) -> Any:
    return model.train(params, inputs, None, mask=mask)[0]

  return model._replace(apply=apply)


def from_linen(
  module: nn.Module,
  *,
  train: Mapping[str, Any] | None = None,
  evaluation: Mapping[str, Any] | None = None,
) -> AdaptedModel:
  """Makes a model of a `flax.linen.Module`, which learners do by themselves.

  Its parameters are the module's variables; every collection but "params" is
  `State`. All random streams are drawn from the key that `train` is given.

  Args:
    module: called as `module(inputs)`; with `mask=` if `__call__` has such an
      argument and the batch a mask.
    train: keywords of the call in training; None: `{"train": True}` if
      `__call__` has such an argument, likewise training, is_training,
      deterministic, use_running_average, inference, eval.
    evaluation: those in evaluation, likewise.

  Raises:
    ValueError: in use, if a batch has a mask, and the module state but no
      argument `mask`: padding would be counted.
  """
  arguments = inspect.signature(type(module).__call__).parameters
  takes_mask = "mask" in arguments
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
    kept = {k: v.value for k, v in params.items() if isinstance(v, State)}
    if mask is not None:
      check_mask(takes_mask, bool(kept), type(module).__name__)
      keywords = {**keywords, **({"mask": mask} if takes_mask else {})}
    rngs = None if rng is None else {"params": rng, "dropout": rng}
    predictions, new = module.apply(
      {**params, **kept}, inputs, rngs=rngs, mutable=list(kept), **keywords
    )
    return predictions, {**params, **{k: State(v) for k, v in new.items()}}

  def apply(params: Params, inputs: Any, mask: Array | None = None) -> Any:
    return call(params, inputs, None, mask, evaluation)[0]

  def train_pass(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None = None,
  ) -> tuple[Any, Params]:
    return call(params, inputs, rng, mask, train)

  return AdaptedModel(init, apply, train_pass)


def switches(
  arguments: Mapping[str, Any], *, training: bool
) -> dict[str, bool]:
  """Returns the keywords that put a call into training or evaluation."""
  found = {name: training for name in TRAINING if name in arguments}
  return found | {n: not training for n in EVALUATION if n in arguments}


def check_mask(takes_mask: bool, has_state: bool, who: str) -> None:
  """Raises a `ValueError` where padding would get into statistics."""
  if has_state and not takes_mask:
    raise ValueError(
      f"{who} has running statistics but takes no `mask`, which this batch "
      "has: its padding would count. Give the module's call an argument `mask` "
      "(flax's BatchNorm takes it)."
    )
