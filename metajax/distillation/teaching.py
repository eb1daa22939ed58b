"""Teachers as constant predictions, and students as losses to be trained.

Each function returns what `training.supervised_trainer` trains: a loss of a
batch, which is a tree with "inputs", "labels" and perhaps "teacher" (the
teacher's logits, computed before). Students pass over it in training: dropout
draws from the step's key, and running statistics take it in.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from metajax.aggregation import average_probabilities
from metajax.distillation.features import hint
from metajax.distillation.losses import (
  check_masked,
  knowledge_distillation,
  label_smoothing,
  mutual_learning,
)
from metajax.forward import forward
from metajax.types import Array, Metrics, Model, Params, PRNGKey

Examples = Mapping[str, Array]
# The third result are the parameters with new state.
Loss = Callable[[Params, Examples, PRNGKey], tuple[Array, Metrics, Params]]
Teacher = Callable[[Array], Array]  # inputs -> logits


def alone(model: Model, *, smoothing: ArrayLike = 0.0) -> Loss:
  """A student of the labels: cross-entropy, with smoothed labels if asked.

  Args:
    model: predicts logits.
    smoothing: see `label_smoothing`.
  """
  model = forward(model)

  def loss_fn(
    params: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    logits, new = model.train(params, batch["inputs"], rng)
    loss = label_smoothing(logits, batch["labels"], smoothing)
    return loss, {"accuracy": _accuracy(logits, batch["labels"])}, new

  return loss_fn


def taught(
  model: Model,
  teacher: Teacher | None = None,
  *,
  temperature: ArrayLike = 4.0,
  alpha: ArrayLike = 0.9,
) -> Loss:
  """A student of a teacher and of the labels.

  A born-again network is a student of its own architecture; its generations
  are this loss again and again, each with the student before as the teacher
  (Furlanello et al. 2018).

  Args:
    model: the student, predicts logits.
    teacher: computes the teacher's logits of each batch, on the fly; if None
      they are `batch["teacher"]`, computed before by `predict_all`. The arrays
      of a `jax.tree_util.Partial` (see `ensemble`) are arguments of the
      program that trains, all others constants in its text.
    temperature: see `knowledge_distillation`.
    alpha: see `knowledge_distillation`.

  References:
    Furlanello et al., `Born-Again Neural Networks
    <https://arxiv.org/abs/1805.04770>`_, 2018, section 3.
  """
  model = forward(model)

  def loss_fn(
    teacher: Teacher | None, params: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    logits, new = model.train(params, batch["inputs"], rng)
    goal = teacher(batch["inputs"]) if teacher else batch["teacher"]
    loss = knowledge_distillation(
      logits, goal, batch["labels"], temperature=temperature, alpha=alpha
    )
    agreement = jnp.mean(logits.argmax(-1) == goal.argmax(-1))
    metrics = {
      "accuracy": _accuracy(logits, batch["labels"]),
      "agreement": agreement,
    }
    return loss, metrics, new

  return Partial(loss_fn, None if teacher is None else _carried(teacher))


def hinted(
  model: Model,
  features: Callable[[Params, Array], Array],
  *,
  weight: ArrayLike = 1.0,
  temperature: ArrayLike = 4.0,
  alpha: ArrayLike = 0.9,
) -> Loss:
  """A student of what a teacher says and of how it sees.

  ::

    knowledge_distillation + weight hint(features, batch["hint"], regressor)

  with a linear regressor that is learned beside the student (FitNets; there
  the hint comes first and the rest after it).

  Args:
    model: the student, predicts logits.
    features: `(params, inputs) -> [n, d]`, the student's.
    weight: of the hint.
    temperature: see `knowledge_distillation`.
    alpha: see `knowledge_distillation`.

  Returns:
    The loss of `{"student": params, "regressor": [d, d of the hint]}`.

  References:
    Romero et al., `FitNets: Hints for Thin Deep Nets
    <https://arxiv.org/abs/1412.6550>`_, 2015, section 2.
  """
  told = taught(model, temperature=temperature, alpha=alpha)

  def loss_fn(
    params: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    loss, metrics, new = told(params["student"], batch, rng)
    seen = features(params["student"], batch["inputs"])
    distance = hint(seen, batch["hint"], lambda x: x @ params["regressor"])
    metrics = {**metrics, "hint": distance}
    return loss + weight * distance, metrics, {**params, "student": new}

  return loss_fn


def side_by_side(loss_fn: Loss, *, own: Sequence[str] = ()) -> Loss:
  """Students stacked `[students, ...]` who learn alone, from the same batches.

  Args:
    loss_fn: of one of them.
    own: names of what each has for itself, with a student axis after that of
      the examples: `batch["teacher"]` is `[n, students, classes]`.
  """

  def stacked(
    loss_fn: Loss, stack: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    axes = {name: 1 if name in own else None for name in batch}
    losses, metrics, new = jax.vmap(loss_fn, (0, axes, 0))(
      stack, batch, _keys(rng, stack)
    )
    return losses.sum(), jax.tree.map(jnp.mean, metrics), new

  return Partial(stacked, _carried(loss_fn))


def taught_by_peers(model: Model, *, temperature: ArrayLike = 1.0) -> Loss:
  """A cohort of students, stacked `[students, ...]`, who learn together.

  Args:
    model: every student's, predicts logits.
    temperature: see `mutual_learning`.
  """
  model = forward(model)

  def loss_fn(
    stack: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    logits, new = jax.vmap(model.train, (0, None, 0))(
      stack, batch["inputs"], _keys(rng, stack)
    )
    losses = mutual_learning(logits, batch["labels"], temperature=temperature)
    return losses.sum(), {"accuracy": _accuracy(logits, batch["labels"])}, new

  return loss_fn


def ensemble(
  model: Model, stack: Params, weights: Array | None = None
) -> Teacher:
  """An ensemble as a teacher: the log of its mean probabilities.

  Args:
    model: every member's, predicts logits.
    stack: parameters `[models, ...]`.
    weights: `[models]`, see `average_probabilities`.

  Returns:
    A `jax.tree_util.Partial`, whose arrays are the stack and the weights.
  """
  model = forward(model)

  def teacher(stack: Params, weights: Array | None, inputs: Array) -> Array:
    logits = jax.vmap(model.apply, (0, None))(stack, inputs)
    return average_probabilities(logits, weights)

  return Partial(teacher, stack, weights)


def predict_all(
  teacher: Teacher, inputs: Array, *, batch_size: int = 256
) -> Array:
  """Computes a teacher's logits of many inputs once, in bounded memory.

  Args:
    teacher: `(inputs [n, ...]) -> [n, classes]`, of each input by itself. The
      arrays of a `jax.tree_util.Partial` are arguments of the program, all
      others that it uses are constants in its text.
    inputs: `[examples, ...]`.
    batch_size: inputs at once.

  Returns:
    `[examples, classes]`.

  Raises:
    ValueError: if the teacher's outputs are not finite; -inf masks a class.
  """
  logits = _predict_all(_carried(teacher), inputs, batch_size)
  check_masked(logits)
  return logits


@functools.partial(jax.jit, static_argnums=2)
def _predict_all(teacher: Teacher, inputs: Array, batch_size: int) -> Array:
  return jax.lax.map(
    lambda x: teacher(x[None])[0], inputs, batch_size=batch_size
  )


def _carried(function: Callable[..., Any]) -> Partial:
  return function if isinstance(function, Partial) else Partial(function)


def _keys(rng: PRNGKey, stack: Params) -> PRNGKey:
  """A key for each student."""
  return jax.random.split(rng, jax.tree.leaves(stack)[0].shape[0])


def _accuracy(logits: Array, labels: Array) -> Array:
  return jnp.mean(logits.argmax(-1) == labels)
