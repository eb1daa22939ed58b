"""Data distillation as meta-learning: the meta-parameters are a data set."""

from collections.abc import Sequence
from typing import Any

import jax

from metajax.distillation.synthetic import (
  Objective,
  SyntheticSet,
  fit_synthetic,
)
from metajax.forward import stateless
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.types import (
  Array,
  Batch,
  Episode,
  MetaLearner,
  Metrics,
  Model,
  Params,
  PRNGKey,
)


def distill_data(
  model: Model,
  objective: Objective,
  start: SyntheticSet,
  num_eval_steps: int,
  *,
  learned: Sequence[str] = ("inputs",),
) -> MetaLearner:
  """Learns a synthetic data set on which new networks are trained.

  A task is a new network, initialised by the task's key, and a batch of real
  data, the query. The support is not used. `adapt` trains the network on the
  synthetic set, and `predict` returns its predictions. An evaluation over tasks
  is therefore an evaluation over networks::

    adapt(S) = num_eval_steps of SGD on S from a random start
    g = d/dS  mean over tasks of  objective(S, query, key)

  Args:
    model: the network that is trained on the set. It predicts logits.
    objective: one of `distillation.datasets`: `unrolled`, `gradient_matching`,
      `distribution_matching` or `kernel_inducing`.
    start: the initial synthetic set.
    num_eval_steps: steps of `adapt`.
    learned: the fields of the set that get a gradient.

  Returns:
    A `MetaLearner` whose meta-parameters are a `SyntheticSet`.

  Raises:
    ValueError: if `learned` is empty or has a name that is no field of the set.
  """
  unknown = set(learned) - set(SyntheticSet._fields)
  if unknown or not learned:
    raise ValueError(
      f"learned={tuple(learned)}: must be of {SyntheticSet._fields}."
    )

  model = stateless(model, "distill_data")

  def init(rng: PRNGKey, inputs: Any) -> Params:
    del rng, inputs
    return start

  def adapt(synthetic: Params, support: Batch, rng: PRNGKey) -> Params:
    del support
    params = model.init(rng, synthetic.inputs)
    return fit_synthetic(model, params, synthetic, num_eval_steps)

  def meta_loss(
    synthetic: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    fixed = {
      name: jax.lax.stop_gradient(getattr(synthetic, name))
      for name in SyntheticSet._fields
      if name not in learned
    }
    loss = objective(synthetic._replace(**fixed), episode.query, rng)
    return loss, {"loss": loss}

  return MetaLearner(init, adapt, model.apply, gradient_of_mean(meta_loss))
