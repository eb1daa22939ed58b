"""Distils one meta-learner into another, task by task."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from metajax import variables
from metajax.batches import only_array
from metajax.distillation import regression_distillation, softened_kl
from metajax.distillation.losses import mix
from metajax.forward import with_mask
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.losses import over_examples
from metajax.numerics import check_number
from metajax.types import (
  Array,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Params,
  PRNGKey,
)


def taught(
  student: MetaLearner,
  teacher: MetaLearner,
  teacher_params: Params,
  loss_fn: LossFn,
  *,
  alpha: ArrayLike = 0.9,
  temperature: ArrayLike = 1.0,
) -> MetaLearner:
  """Trains a meta-learner on the predictions of another, the teacher.

  ::

    p = student's predictions on the query after its adapt(theta, support)
    q = teacher's predictions on the query after its own adapt
    g = d/dtheta  mean over tasks of
        (1 - alpha) L(p, query targets) + alpha match(p, constant q)

  where match is `softened_kl` for class labels and `regression_distillation`
  for other targets. The teacher may be an ensemble (`learned_ensemble`). It may
  also be a slow learner with many steps, which teaches a fast student.

  Args:
    student: the learner to train. Its `adapt` and `predict` are differentiated,
      and not its `meta_grad`. They must therefore be as you want to train them
      (for MAML, `num_eval_steps` as in training). The query is predicted as in
      evaluation, without dropout. The new state is the state after the support.
    teacher: adapts and predicts. It is not differentiated.
    teacher_params: the teacher's meta-parameters.
    loss_fn: `(predictions, targets) -> scalar`.
    alpha: weight of the teacher's term, in [0, 1].
    temperature: temperature of `softened_kl`, positive.

  Returns:
    A `MetaLearner` with the student's meta-parameters. It reports "loss" (the
    student's own) and "match", and for classes "agreement", the fraction of
    equal class predictions.

  Raises:
    ValueError: if alpha or the temperature is out of range. In use, if the
      student has `State` nodes that its task parameters do not return, or if
      the targets are not one array.

  References:
    Dvornik et al., `Diversity with Cooperation: Ensemble Methods for Few-Shot
    Classification <https://arxiv.org/abs/1903.11341>`_, 2019, section 3.4, for
    ensembles. The paper matches predictions on the classes of the training set;
    `taught` matches predictions on the query.
  """
  check_number("alpha", alpha, at_least=0, at_most=1)
  check_number("temperature", temperature, above=0)

  def answer(
    learner: MetaLearner, params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Params]:
    task_params = learner.adapt(params, episode.support, rng)
    inputs, _, mask = episode.query
    predictions = with_mask(learner.predict)(task_params, inputs, mask=mask)
    return predictions, task_params

  def meta_loss(
    given: tuple[MetaLearner, MetaLearner, Params],
    meta_params: Params,
    episode: Episode,
    rng: PRNGKey,
  ) -> tuple[Array, Metrics, Params]:
    student, teacher, teacher_params = given
    own_key, teacher_key = jax.random.split(rng)
    predictions, task_params = answer(student, meta_params, episode, own_key)
    goal, _ = answer(teacher, teacher_params, episode, teacher_key)
    goal = jax.lax.stop_gradient(goal)
    _, targets, mask = episode.query

    def over(score: LossFn, others: Any) -> Array:
      return over_examples(score, predictions, others, mask)

    loss = over(loss_fn, targets)
    targets = only_array(targets, "targets", "taught")
    if jnp.issubdtype(targets.dtype, jnp.integer):
      match = over(lambda p, q: softened_kl(p, q, temperature), goal)
      same = over(lambda p, q: (p.argmax(-1) == q.argmax(-1)).mean(), goal)
      extra = {"agreement": same}
    else:
      match, extra = over(regression_distillation, goal), {}
    new = _state_of(task_params, meta_params)
    scores = {"loss": loss, "match": match, **extra}
    return mix(alpha, loss, match), scores, new

  def meta_grad(
    given: tuple[MetaLearner, MetaLearner, Params], *arguments: Any
  ) -> tuple[Params, Metrics]:
    return gradient_of_mean(functools.partial(meta_loss, given))(*arguments)

  # `Partial` makes the teacher an argument of compiled programs, no constant.
  given = student.carried(), teacher.carried(), teacher_params
  # A student's schedule would replace the new `meta_grad`, so it is dropped.
  return student._replace(meta_grad=Partial(meta_grad, given), schedule=None)


def _state_of(task_params: Params, meta_params: Params) -> Params:
  """Returns meta-parameters with the state after the support of a task.

  Raises:
    ValueError: if the meta-parameters have state, but the task parameters are
      another tree, from which the new state cannot be read.
  """
  trees: list[Any] = [jax.tree.structure(p) for p in (task_params, meta_params)]
  if trees[0] == trees[1]:
    return task_params
  if jax.tree.leaves(variables.states(meta_params)):
    raise ValueError(
      "student: has running statistics, and task parameters that are no tree "
      "like its meta-parameters, so that nobody updates them; normalise by the "
      "batch or in groups."
    )
  return meta_params
