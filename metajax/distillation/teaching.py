"""Losses that train a student, alone or with a teacher.

Each function returns a loss for `training.supervised_trainer`. The loss takes a
batch, which is a dictionary with "inputs" and "labels", or a `Batch`. The
dictionary may also have "teacher", the precomputed logits of the teacher. The
student runs in training mode: dropout uses the key of the step, and running
statistics are updated.
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
from metajax.losses import accuracy
from metajax.numerics import check_counts
from metajax.types import Array, Batch, Metrics, Model, Params, PRNGKey

Examples = Mapping[str, Array] | Batch
# (params, batch, rng) -> (loss, metrics, params with new state)
Loss = Callable[[Params, Examples, PRNGKey], tuple[Array, Metrics, Params]]
Teacher = Callable[[Array], Array]  # inputs -> logits


def alone(model: Model, *, smoothing: ArrayLike = 0.0) -> Loss:
  """Builds the loss of a student without a teacher: smoothed cross-entropy.

  Args:
    model: predicts logits.
    smoothing: see `label_smoothing`.
  """
  model = forward(model)

  def loss_fn(
    params: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    batch = _examples(batch, "inputs", "labels")
    logits, new = model.train(params, batch["inputs"], rng)
    loss = label_smoothing(logits, batch["labels"], smoothing)
    return loss, {"accuracy": accuracy(logits, batch["labels"])}, new

  return loss_fn


def taught(
  model: Model,
  teacher: Teacher | None = None,
  *,
  temperature: ArrayLike = 4.0,
  alpha: ArrayLike = 0.9,
) -> Loss:
  """Builds the loss of a student that learns from a teacher and from labels.

  A born-again network is a student with the architecture of its teacher. Each
  generation is trained with this loss, and its teacher is the generation before
  (Furlanello et al. 2018).

  Args:
    model: the student, which predicts logits.
    teacher: computes the teacher's logits for each batch. If None, the logits
      are `batch["teacher"]`, which `predict_all` computes in advance. The
      arrays of a `jax.tree_util.Partial` (see `ensemble`) are arguments of the
      compiled training program. All other captured arrays are constants in it.
    temperature: see `knowledge_distillation`.
    alpha: see `knowledge_distillation`.

  References:
    Furlanello et al., `Born-Again Neural Networks
    <https://arxiv.org/abs/1805.04770>`_, 2018, section 3.
  """
  model = forward(model)

  def loss_fn(
    teacher: Teacher | None,
    params: Params,
    batch: Examples,
    rng: PRNGKey,
  ) -> tuple[Array, Metrics, Params]:
    names = ["inputs", "labels"] if teacher else ["inputs", "labels", "teacher"]
    batch = _examples(batch, *names)
    logits, new = model.train(params, batch["inputs"], rng)
    goal = teacher(batch["inputs"]) if teacher else batch["teacher"]
    loss = knowledge_distillation(
      logits, goal, batch["labels"], temperature=temperature, alpha=alpha
    )
    agreement = jnp.mean(logits.argmax(-1) == goal.argmax(-1))
    metrics = {
      "accuracy": accuracy(logits, batch["labels"]),
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
  """Builds the loss of a student that also learns a teacher's features.

  ::

    knowledge_distillation + weight hint(features, batch["hint"], regressor)

  The teacher's logits are `batch["teacher"]`, and its features `batch["hint"]`.
  The regressor is linear and is learned with the student. (FitNets train with
  the hint first, and with distillation afterwards.)

  Args:
    model: the student, which predicts logits.
    features: `(params, inputs) -> [n, d]`, the student's features.
    weight: weight of the hint.
    temperature: see `knowledge_distillation`.
    alpha: see `knowledge_distillation`.

  Returns:
    A loss whose parameters are `{"student": params, "regressor": [d, d of the
    hint]}`.

  References:
    Romero et al., `FitNets: Hints for Thin Deep Nets
    <https://arxiv.org/abs/1412.6550>`_, 2015, section 2.
  """
  told = taught(model, temperature=temperature, alpha=alpha)

  def loss_fn(
    params: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    batch = _examples(batch, "inputs", "labels", "teacher", "hint")
    loss, metrics, new = told(params["student"], batch, rng)
    seen = features(params["student"], batch["inputs"])
    distance = hint(seen, batch["hint"], lambda x: x @ params["regressor"])
    metrics = {**metrics, "hint": distance}
    return loss + weight * distance, metrics, {**params, "student": new}

  return loss_fn


def side_by_side(loss_fn: Loss, *, own: Sequence[str] = ()) -> Loss:
  """Builds the loss of a stack of students that learn separately.

  All students learn from the same batches. Their parameters are a tree of
  arrays `[students, ...]`.

  Args:
    loss_fn: the loss of one student.
    own: names in the batch that differ between the students. Their arrays have
      a student axis after the example axis. With `own=["teacher"]`,
      `batch["teacher"]` is `[n, students, classes]`.

  Raises:
    ValueError: in use, if the batch lacks a name of `own`.
  """

  def stacked(
    loss_fn: Loss, stack: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    batch = _examples(batch)
    for name in own:
      if name not in batch:
        raise ValueError(
          f"own: {name!r} is not in the batch, which has {sorted(batch)}."
        )
    axes = {name: 1 if name in own else None for name in batch}
    losses, metrics, new = jax.vmap(loss_fn, (0, axes, 0))(
      stack, batch, _keys(rng, stack)
    )
    return losses.sum(), jax.tree.map(jnp.mean, metrics), new

  return Partial(stacked, _carried(loss_fn))


def taught_by_peers(model: Model, *, temperature: ArrayLike = 1.0) -> Loss:
  """Builds the loss of a stack of students that learn from each other.

  Their parameters are a tree of arrays `[students, ...]`.

  Args:
    model: the model of every student, which predicts logits.
    temperature: see `mutual_learning`.
  """
  model = forward(model)

  def loss_fn(
    stack: Params, batch: Examples, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    batch = _examples(batch, "inputs", "labels")
    logits, new = jax.vmap(model.train, (0, None, 0))(
      stack, batch["inputs"], _keys(rng, stack)
    )
    losses = mutual_learning(logits, batch["labels"], temperature=temperature)
    scores = jax.vmap(accuracy, (0, None))(logits, batch["labels"])
    return losses.sum(), {"accuracy": scores.mean()}, new

  return loss_fn


def ensemble(
  model: Model, stack: Params, weights: Array | None = None
) -> Teacher:
  """Builds a teacher from an ensemble: the log of its mean probabilities.

  Args:
    model: the model of every member, which predicts logits.
    stack: the members' parameters, a tree of arrays `[models, ...]`.
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
  """Computes a teacher's logits for many inputs in bounded memory.

  Args:
    teacher: `(inputs [n, ...]) -> [n, classes]`. It is called with one input at
      a time, vectorised over a batch. The arrays of a `jax.tree_util.Partial`
      are arguments of the compiled program. All other captured arrays are
      constants in it.
    inputs: `[examples, ...]`.
    batch_size: number of inputs to compute at once.

  Returns:
    `[examples, classes]`.

  Raises:
    ValueError: if the teacher's outputs are not finite, or if `batch_size` is
      not positive. -inf is allowed, as in `softened_kl`.
  """
  check_counts(batch_size=batch_size)
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


def _examples(batch: Examples, *names: str) -> Mapping[str, Array]:
  """Returns the examples as a dictionary with these names.

  Raises:
    ValueError: if they are no dictionary with these names and no `Batch`, or if
      a `Batch` has a mask.
  """
  if isinstance(batch, Batch):
    if batch.mask is not None:
      raise ValueError("batch: has a mask, which these losses do not take.")
    batch = {"inputs": batch.inputs, "labels": batch.targets}
  if not isinstance(batch, Mapping):
    raise ValueError(
      f"batch: {type(batch).__name__} given, must be a dictionary of "
      f"{list(names)}; give such data to the trainer."
    )
  for name in names:
    if name not in batch:
      raise ValueError(
        f"batch: has no {name!r}, must be a dictionary of {list(names)}."
      )
  return batch


def _keys(rng: PRNGKey, stack: Params) -> PRNGKey:
  """Returns a key for each student."""
  return jax.random.split(rng, jax.tree.leaves(stack)[0].shape[0])
