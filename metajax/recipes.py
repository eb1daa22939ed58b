"""Describes meta-learners in JSON values, and builds them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from metajax import losses
from metajax.inner_loop import Memory
from metajax.learners import ENCODED, REGISTRY
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.precision import compute_in
from metajax.models.resnet import resnet12
from metajax.tabular.classifier import tabular_classifier
from metajax.types import LossFn, MetaLearner, Model

MODELS: dict[str, Callable[..., Model]] = {
  "conv4": conv4,
  "mlp": MLP,
  "resnet12": resnet12,
}
# Learners that bring their networks, by name. Their recipes have no model, and
# all that they need in `num_outputs` and `options`.
WITH_NETWORK: dict[str, Callable[..., MetaLearner]] = {
  "tabular_classifier": tabular_classifier
}


class Recipe(NamedTuple):
  """The description of a meta-learner, in JSON values only.

  Attributes:
    learner: its name in `metajax.learners.REGISTRY` or in `WITH_NETWORK`.
    model: the "name" of the model in `MODELS`, and its arguments. None: the
      caller supplies the model.
    num_outputs: the outputs of the model: classes, or numbers to predict.
    loss: the name of a function of `metajax.losses`.
    inner_optimizer: "name" (sgd or adam) and "learning_rate".
    num_steps: inner steps in training.
    num_eval_steps: inner steps at test.
    memory: see `metajax.inner_loop.minimize`.
    dtype: the dtype of the model's computations.
    options: arguments of this learner only.
  """

  learner: str
  model: dict[str, Any] | None
  num_outputs: int
  loss: str
  inner_optimizer: dict[str, Any]
  num_steps: int
  num_eval_steps: int
  memory: Memory = "auto"
  dtype: str = "float32"
  options: dict[str, Any] = {}


def build(
  recipe: Recipe,
  metrics: Mapping[str, LossFn] | None = None,
  model: Model | None = None,
) -> MetaLearner:
  """Builds the meta-learner that a recipe describes.

  Args:
    recipe: the description.
    metrics: see `metajax.learners.maml`.
    model: the model, if the recipe has none.

  Raises:
    ValueError: for an unknown name, or if there is no model.
  """
  if recipe.learner in WITH_NETWORK:
    return WITH_NETWORK[recipe.learner](
      num_classes=recipe.num_outputs, metrics=metrics, **recipe.options
    )
  encoded = recipe.learner in ENCODED
  if recipe.model is not None:
    model = build_model(recipe.model, None if encoded else recipe.num_outputs)
  if model is None:
    raise ValueError("the model is one of your own: give it as `model`.")
  if recipe.dtype != "float32":
    model = compute_in(model, recipe.dtype)
  options = dict(recipe.options)
  if encoded:
    options["num_outputs"] = recipe.num_outputs
  named_losses = {
    name: getattr(losses, name)
    for name in ("cross_entropy", "mean_squared_error")
  }
  return _known("learner", recipe.learner, REGISTRY)(
    model,
    _known("loss", recipe.loss, named_losses),
    _optimizer(**recipe.inner_optimizer),
    recipe.num_steps,
    num_eval_steps=recipe.num_eval_steps,
    metrics=metrics,
    memory=recipe.memory,
    **options,
  )


def build_model(
  description: Mapping[str, Any], num_outputs: int | None
) -> Model:
  """Builds the model that `Recipe.model` describes.

  Args:
    description: its "name" in `MODELS`, and its arguments.
    num_outputs: the outputs of its head; None leaves out the head, so that the
      model is an embedding.

  Raises:
    ValueError: for an unknown name.
  """
  arguments = dict(description)
  make = _known("model", arguments.pop("name"), MODELS)
  return make(num_outputs, **arguments)


def _known(kind: str, name: str, known: Mapping[str, Any]) -> Any:
  if name not in known:
    raise ValueError(
      f"{kind} {name!r} is not known here: must be one of {sorted(known)}; "
      "install the package that it is of."
    )
  return known[name]


def _optimizer(name: str, learning_rate: float) -> optax.GradientTransformation:
  if name == "adam":
    # `eps_root` keeps the derivative finite where a gradient is zero.
    return optax.adam(learning_rate, b1=0.0, eps_root=1e-12)
  return _known("inner optimizer", name, {"sgd": optax.sgd})(learning_rate)
