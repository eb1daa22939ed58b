"""Teachers as constant predictions, and students as losses to be trained.

Each function returns what `training.supervised_trainer` trains: a loss of a
batch, which is a tree with "inputs", "labels" and perhaps "teacher" (the
teacher's logits, computed before).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax.aggregation import average_probabilities
from metajax.distillation.losses import (
  knowledge_distillation,
  label_smoothing,
  mutual_learning,
)
from metajax.types import Array, Metrics, Model, Params, PRNGKey

Examples = Mapping[str, Array]
Loss = Callable[[Params, Examples, PRNGKey], tuple[Array, Metrics]]
Teacher = Callable[[Array], Array]  # inputs -> logits


def alone(model: Model, *, smoothing: float = 0.0) -> Loss:
  """A student of the labels: cross-entropy, with smoothed labels if asked.

  Args:
    model: predicts logits.
    smoothing: see `label_smoothing`.
  """

  def loss_fn(
    params: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    del rng
    logits = model.apply(params, batch["inputs"])
    loss = label_smoothing(logits, batch["labels"], smoothing)
    return loss, {"accuracy": _accuracy(logits, batch["labels"])}

  return loss_fn


def taught(
  model: Model,
  teacher: Teacher | None = None,
  *,
  temperature: float = 4.0,
  alpha: float = 0.9,
) -> Loss:
  """A student of a teacher and of the labels.

  A born-again network is a student of its own architecture; its generations
  are this loss again and again, each with the student before as the teacher
  (Furlanello et al. 2018).

  Args:
    model: the student, predicts logits.
    teacher: computes the teacher's logits of each batch, on the fly; if None
      they are `batch["teacher"]`, computed before by `predict_all`.
    temperature: see `knowledge_distillation`.
    alpha: see `knowledge_distillation`.

  References:
    Furlanello et al., `Born-Again Neural Networks
    <https://arxiv.org/abs/1805.04770>`_, 2018, section 3.
  """

  def loss_fn(
    params: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    del rng
    logits = model.apply(params, batch["inputs"])
    goal = teacher(batch["inputs"]) if teacher else batch["teacher"]
    loss = knowledge_distillation(
      logits, goal, batch["labels"], temperature=temperature, alpha=alpha
    )
    agreement = jnp.mean(logits.argmax(-1) == goal.argmax(-1))
    return loss, {
      "accuracy": _accuracy(logits, batch["labels"]),
      "agreement": agreement,
    }

  return loss_fn


def taught_by_peers(model: Model, *, temperature: float = 1.0) -> Loss:
  """A cohort of students, stacked `[students, ...]`, who learn together.

  Args:
    model: every student's, predicts logits.
    temperature: see `mutual_learning`.
  """

  def loss_fn(
    stack: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    del rng
    logits = jax.vmap(model.apply, (0, None))(stack, batch["inputs"])
    losses = mutual_learning(logits, batch["labels"], temperature=temperature)
    return losses.sum(), {"accuracy": _accuracy(logits, batch["labels"])}

  return loss_fn


def ensemble(
  model: Model, stack: Params, weights: Array | None = None
) -> Teacher:
  """An ensemble as a teacher: the log of its mean probabilities.

  Args:
    model: every member's, predicts logits.
    stack: parameters `[models, ...]`.
    weights: `[models]`, see `average_probabilities`.
  """

  def teacher(inputs: Array) -> Array:
    logits = jax.vmap(model.apply, (0, None))(stack, inputs)
    return average_probabilities(logits, weights)

  return teacher


def predict_all(
  teacher: Teacher, inputs: Array, *, batch_size: int = 256
) -> Array:
  """Computes a teacher's logits of many inputs once, in bounded memory.

  Args:
    teacher: `(inputs [n, ...]) -> [n, classes]`, of each input by itself.
    inputs: `[examples, ...]`.
    batch_size: inputs at once.

  Returns:
    `[examples, classes]`.

  Raises:
    ValueError: if the teacher's outputs are not finite.
  """

  @jax.jit
  def run(inputs: Any) -> Array:
    return jax.lax.map(
      lambda x: teacher(x[None])[0], inputs, batch_size=batch_size
    )

  logits = run(inputs)
  if not jnp.isfinite(logits).all():
    raise ValueError("the teacher's outputs are not finite.")
  return logits


def _accuracy(logits: Array, labels: Array) -> Array:
  return jnp.mean(logits.argmax(-1) == labels)
