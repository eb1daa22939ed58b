"""A meta-learner taught by another, task by task."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from metajax import variables
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
  """Distils what one meta-learner predicts after a task into another.

  ::

    student predicts p on the query after adapt(theta, support),
    teacher predicts q, likewise with its own adapt and parameters;
    g = d/dtheta  mean over tasks of
        (1 - alpha) L(p, query targets) + alpha match(p, constant q)

  where match is `softened_kl` for class labels and `regression_distillation`
  otherwise. The teacher may be an ensemble (`learned_ensemble`), or a slow
  learner of many steps, the student a fast one.

  Args:
    student: its `adapt` and `predict` are differentiated, so they must be as
      they are to be trained (for MAML: `num_eval_steps` as in training). The
      query is predicted as in evaluation, without dropout; state is what the
      support leaves.
    teacher: adapts and predicts; nothing of it is differentiated.
    teacher_params: its meta-parameters.
    loss_fn: `(predictions, targets) -> scalar`.
    alpha: how much the teacher counts, in [0, 1].
    temperature: of `softened_kl`, positive.

  Returns:
    A `MetaLearner` with the student's meta-parameters, which reports "loss"
    (the student's own), "match", and "agreement" of class predictions.

  Raises:
    ValueError: if alpha or the temperature is out of range.

  References:
    Dvornik et al., `Diversity with Cooperation: Ensemble Methods for Few-Shot
    Classification <https://arxiv.org/abs/1903.11341>`_, 2019, section 3.4, for
    ensembles; there on classes of the training set, here on the query.
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

  # The teacher is an argument of programs, and no constant.
  given = student.carried(), teacher.carried(), teacher_params
  # What a student's schedule would change is replaced.
  return student._replace(meta_grad=Partial(meta_grad, given), schedule=None)


def _state_of(task_params: Params, meta_params: Params) -> Params:
  """Returns meta-parameters with the state that a task has left.

  Raises:
    ValueError: if there is state, and no telling which it has become.
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
