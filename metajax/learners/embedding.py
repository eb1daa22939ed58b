"""Metric and linear learners: a shared embedding and a head for each task."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax.batches import only_array
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
  prepare: Callable[[PRNGKey, Batch], Batch] | None = None,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Learns an embedding for heads that are fitted to the support of a task.

  ::

    phi = head.fit(f(support inputs), support targets)
    prediction = head.predict(phi, f(inputs))
    g = d/dtheta  mean over tasks of  L(prediction; query)

  The head decides which method it is:

  - `heads.nearest_mean` makes it a prototypical network.
  - `heads.ridge` makes it the ridge-regression learner of Bertinetto et al.
    (2019).
  - `heads.logistic` makes it the baseline of Tian et al. (2020). Its embedding
    must be trained by another method.

  Args:
    model: f, pure `init(rng, inputs)` and `apply(params, inputs) -> [n, d]`.
    head: fits and predicts. The fit of `heads.logistic` cannot be
      differentiated, so `meta_grad` fails with it; `adapt` and `predict` work.
    loss_fn: `(predictions, targets) -> scalar`, for the query.
    normalize: scale each feature vector to length 1, as Tian et al. do.
    prepare: `(rng, support) -> support`, a random change of the support before
      the head is fitted. Tian et al. fit to several augmented copies of it.
      None: no change.
    metrics: more such functions to be reported by `meta_grad` beside "loss".

  Returns:
    A `MetaLearner` whose meta-parameters are the embedding's.
  """
  model = forward(model)

  def scaled(features: Array) -> Array:
    return unit_length(features) if normalize else features

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    if prepare is not None:
      support = prepare(rng, support)
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

  encoded = encoded_loss(model.train, solve, loss_fn, metrics)

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    if prepare is not None:
      prepare_key, rng = jax.random.split(rng)
      support = prepare(prepare_key, episode.support)
      episode = episode._replace(support=support)
    return encoded(meta_params, episode, rng)

  return MetaLearner(model.init, adapt, predict, gradient_of_mean(meta_loss))


def fit_head(head: Head, features: Array, batch: Batch) -> Params:
  """Fits a head to features, with the batch's mask if it has one.

  Raises:
    ValueError: if the batch has a mask and `head.fit` does not take one, if
      there are more or fewer targets than features, or if the model returns
      anything but one array.
  """
  only_array(features, "the model's output", "a head")
  for targets in jax.tree.leaves(batch.targets):
    if jnp.shape(targets)[:1] != features.shape[:1]:
      raise ValueError(
        f"targets: shape {jnp.shape(targets)} for {len(features)} examples."
      )
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
  """Builds the meta-loss of a learner that encodes its inputs first.

  The encoder runs in training mode. It encodes the support first. It then
  encodes the query with the state that the support has left.

  Args:
    encode: `(params, inputs, rng, *, mask) -> (features, params)`.
    solve: `(meta_params, support features, query features, episode) ->
      predictions` of the query.
    loss_fn: `(predictions, targets) -> scalar`, for the query.
    metrics: more such functions, reported beside "loss".
    of: the key of the encoder's parameters in the meta-parameters. If None, the
      meta-parameters are the encoder's parameters.
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
