"""Metric and linear learners: one embedding for all tasks, a head for each."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from metajax.forward import forward, takes_mask
from metajax.learners.heads import Head, unit_length
from metajax.learners.meta_gradients import MetaLoss, gradient_of_mean
from metajax.losses import over_examples
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
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
  model = forward(model)

  def scaled(features: Array) -> Array:
    return unit_length(features) if normalize else features

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    features = model.apply(meta_params, support.inputs, mask=support.mask)
    head_params = fit_head(head, scaled(features), support)
    return {"embedding": meta_params, "head": head_params}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Array:
    features = model.apply(task_params["embedding"], inputs, mask=mask)
    return head.predict(task_params["head"], scaled(features))

  def solve(
    meta_params: Params, support: Array, query: Array, episode: Episode
  ) -> Array:
    head_params = fit_head(head, scaled(support), episode.support)
    return head.predict(head_params, scaled(query))

  meta_loss = encoded_loss(model.train, solve, loss_fn, metrics)
  return MetaLearner(model.init, adapt, predict, gradient_of_mean(meta_loss))


def fit_head(head: Head, features: Array, batch: Batch) -> Params:
  """Fits a head, with a mask if the batch has one.

  Raises:
    ValueError: if it has one, and the head takes none.
  """
  if batch.mask is None:
    return head.fit(features, batch.targets)
  if not takes_mask(head.fit):
    raise ValueError("head.fit: takes no `mask`, which this batch has.")
  return head.fit(features, batch.targets, mask=batch.mask)


def encoded_loss(
  encode: Callable[..., tuple[Array, Params]],
  solve: Callable[[Params, Array, Array, Episode], Array],
  loss_fn: LossFn,
  metrics: Mapping[str, LossFn] | None = None,
  *,
  of: str | None = None,
) -> MetaLoss:
  """Builds the meta-loss of a task whose examples are first encoded.

  Support and query are encoded in training mode, the query by what the support
  has left of the encoder's state.

  Args:
    encode: `(params, inputs, rng, *, mask) -> (features, params)`.
    solve: `(meta_params, support features, query features, episode) ->
      predictions` of the query.
    loss_fn: `(predictions, targets) -> scalar`, of the query.
    metrics: more such functions, reported beside "loss".
    of: the encoder's key in the meta-parameters; None: they are its own.
  """
  report = dict(metrics or {})

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    support, query = episode
    params = meta_params if of is None else meta_params[of]
    support_key, query_key = jax.random.split(rng)
    before, params = encode(
      params, support.inputs, support_key, mask=support.mask
    )
    after, params = encode(params, query.inputs, query_key, mask=query.mask)
    predictions = solve(meta_params, before, after, episode)
    scores = {
      name: over_examples(f, predictions, query.targets, query.mask)
      for name, f in {"loss": loss_fn, **report}.items()
    }
    new = params if of is None else {**meta_params, of: params}
    return scores["loss"], scores, new

  return meta_loss
