"""A meta-learner taught by another, task by task."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.distillation import regression_distillation, softened_kl
from metajax.distillation.losses import mix
from metajax.learners.meta_gradients import gradient_of_mean
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
      they are to be trained (for MAML: `num_eval_steps` as in training).
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
  ) -> Array:
    task_params = learner.adapt(params, episode.support, rng)
    return learner.predict(task_params, episode.query.inputs)

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    own_key, teacher_key = jax.random.split(rng)
    predictions = answer(student, meta_params, episode, own_key)
    goal = jax.lax.stop_gradient(
      answer(teacher, teacher_params, episode, teacher_key)
    )
    targets = episode.query.targets
    loss = loss_fn(predictions, targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
      match = softened_kl(predictions, goal, temperature)
      same = predictions.argmax(-1) == goal.argmax(-1)
      extra = {"agreement": same.mean()}
    else:
      match, extra = regression_distillation(predictions, goal), {}
    return mix(alpha, loss, match), {"loss": loss, "match": match, **extra}

  # What a student's schedule would change is replaced.
  return student._replace(meta_grad=gradient_of_mean(meta_loss), schedule=None)
