"""Describes meta-learners in JSON values, and builds them.

A family of learners is imported where one of them is built.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from metajax import losses
from metajax.inner_loop import Memory
from metajax.learners import ENCODED, REGISTRY, learn_by_reading
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.precision import compute_in
from metajax.models.resnet import resnet12
from metajax.types import LossFn, MetaLearner, Model

MODELS: dict[str, Callable[..., Model]] = {
  "conv4": conv4,
  "mlp": MLP,
  "resnet12": resnet12,
}
LOSSES: dict[str, LossFn] = {
  "cross_entropy": losses.cross_entropy,
  "mean_squared_error": losses.mean_squared_error,
}


class Recipe(NamedTuple):
  """The description of a meta-learner, in JSON values only.

  Attributes:
    learner: its name in the table of its kind.
    model: the "name" of the model in `MODELS`, and its arguments. None: the
      caller supplies the model, or the learner has networks of its own.
    num_outputs: the outputs of the model: classes, or numbers to predict.
    loss: the name of a function of `metajax.losses`; "log_likelihood" for
      learners that predict distributions.
    inner_optimizer: "name" (sgd or adam) and "learning_rate".
    num_steps: inner steps in training.
    num_eval_steps: inner steps at test.
    memory: see `metajax.inner_loop.minimize`.
    dtype: the dtype of the model's computations.
    options: arguments of this learner only.
    kind: the table of the name. "model": `metajax.learners.REGISTRY`.
      "context": `metajax.context.LEARNERS`. "reader":
      `metajax.context.READERS`, whose model is the encoder. "table":
      tabular_classifier alone. The last three have no inner steps.
  """

  learner: str
  model: dict[str, Any] | None
  num_outputs: int
  loss: str
  inner_optimizer: dict[str, Any] = {}
  num_steps: int = 0
  num_eval_steps: int = 0
  memory: Memory = "auto"
  dtype: str = "float32"
  options: dict[str, Any] = {}
  kind: str = "model"

  @property
  def has_inner_steps(self) -> bool:
    """Whether the learner adapts by inner steps."""
    return self.kind == "model" and self.learner not in ENCODED


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
    ValueError: for an unknown name, if there is no model, or for a model or a
      dtype that would have no effect.
  """
  return _known("kind", recipe.kind, KINDS)(recipe, metrics, model)


def _of_model(
  recipe: Recipe, metrics: Mapping[str, LossFn] | None, model: Model | None
) -> MetaLearner:
  encoded = recipe.learner in ENCODED
  outputs = None if encoded else recipe.num_outputs
  model = _network(recipe, outputs, model)
  options = dict(recipe.options)
  if encoded:
    options["num_outputs"] = recipe.num_outputs
  return _known("learner", recipe.learner, REGISTRY)(
    model,
    _known("loss", recipe.loss, LOSSES),
    _optimizer(**recipe.inner_optimizer),
    recipe.num_steps,
    num_eval_steps=recipe.num_eval_steps,
    metrics=metrics,
    memory=recipe.memory,
    **options,
  )


def _of_context(
  recipe: Recipe, metrics: Mapping[str, LossFn] | None, model: Model | None
) -> MetaLearner:
  from metajax.context import registry as in_context

  _check_own(recipe, model)
  _known("learner", recipe.learner, in_context.LEARNERS)
  return in_context.build(
    recipe.learner,
    num_outputs=recipe.num_outputs,
    metrics=metrics,
    **recipe.options,
  )


def _of_reader(
  recipe: Recipe, metrics: Mapping[str, LossFn] | None, model: Model | None
) -> MetaLearner:
  from metajax.context.sequences import READERS, build_reader

  _known("learner", recipe.learner, READERS)
  options = dict(recipe.options)
  of_support = options.pop("of_support", True)
  return learn_by_reading(
    _network(recipe, None, model),
    build_reader(recipe.learner, **options),
    _known("loss", recipe.loss, LOSSES),
    num_outputs=recipe.num_outputs,
    of_support=of_support,
    metrics=metrics,
  )


def _of_table(
  recipe: Recipe, metrics: Mapping[str, LossFn] | None, model: Model | None
) -> MetaLearner:
  from metajax.tabular.classifier import tabular_classifier

  _check_own(recipe, model)
  known = {"tabular_classifier": tabular_classifier}
  return _known("learner", recipe.learner, known)(
    num_classes=recipe.num_outputs, metrics=metrics, **recipe.options
  )


def _check_own(recipe: Recipe, model: Model | None) -> None:
  """Refuses what has no effect on learners with networks of their own."""
  if model is not None:
    raise ValueError(f"model: {recipe.learner} has its own; leave it out.")
  if recipe.dtype != "float32":
    raise ValueError(
      f"dtype={recipe.dtype!r}: {recipe.learner} computes in float32; leave it "
      "out."
    )


KINDS: dict[str, Callable[..., MetaLearner]] = {
  "model": _of_model,
  "context": _of_context,
  "reader": _of_reader,
  "table": _of_table,
}


def _network(
  recipe: Recipe, num_outputs: int | None, model: Model | None
) -> Model:
  """Returns the model of a recipe, or the caller's."""
  if recipe.model is not None:
    model = build_model(recipe.model, num_outputs)
  if model is None:
    raise ValueError("the model is one of your own: give it as `model`.")
  if recipe.dtype != "float32":
    model = compute_in(model, recipe.dtype)
  return model


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
