"""Metric and linear learners: one embedding for all tasks, a head for each."""

from collections.abc import Mapping

import jax.numpy as jnp

from metajax.learners.heads import Head
from metajax.learners.meta_gradients import gradient_of_mean, query_loss
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)


def embedding(
  model: Model,
  head: Head,
  loss_fn: LossFn,
  *,
  normalize: bool = False,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Learns an embedding on which a head, fitted to the support, generalises.

  ::

    phi = head.fit(f(support inputs), support targets)
    prediction = head.predict(phi, f(inputs))
    g = d/dtheta  mean over tasks of  L(prediction; query)

  With `heads.nearest_mean` it is a prototypical network; with `heads.ridge` the
  ridge-regression learner of Bertinetto et al. (2019); with an embedding that
  was trained otherwise and `heads.logistic`, Tian et al.'s (2020) baseline.

  Args:
    model: f, pure `init(rng, inputs)` and `apply(params, inputs) -> [n, d]`.
    head: fits and predicts. With `heads.logistic`, whose fit cannot be
      differentiated, there is no `meta_grad`, but all the rest.
    loss_fn: `(predictions, targets) -> scalar`, of the query.
    normalize: scale each feature vector to length 1, as Tian et al. do.
    metrics: more such functions to be reported by `meta_grad` beside "loss".

  Returns:
    A `MetaLearner` whose meta-parameters are the embedding's.
  """

  def embed(params: Params, inputs: Array) -> Array:
    features = model.apply(params, inputs)
    if normalize:
      squares = jnp.square(features).sum(-1, keepdims=True)
      features = features / jnp.sqrt(squares + 1e-12)
    return features

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    features = embed(meta_params, support.inputs)
    return {
      "embedding": meta_params,
      "head": head.fit(features, support.targets),
    }

  def predict(task_params: Params, inputs: Array) -> Array:
    features = embed(task_params["embedding"], inputs)
    return head.predict(task_params["head"], features)

  meta_loss = query_loss(adapt, predict, loss_fn, metrics)
  return MetaLearner(model.init, adapt, predict, gradient_of_mean(meta_loss))
