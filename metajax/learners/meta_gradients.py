"""Builds the meta-gradient of a chunk of tasks from a function of one task."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

from metajax import variables
from metajax.batches import num_tasks
from metajax.forward import with_mask
from metajax.gradient_checks import check_task_loss
from metajax.inner_loop import TASK_AXIS
from metajax.losses import over_examples
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  Metrics,
  Params,
  PRNGKey,
)

MetaGrad = Callable[[Params, Episode, PRNGKey], tuple[Params, Metrics]]
# (meta_params, episode, rng) -> (loss, metrics) or
# (loss, metrics, meta_params with new state)
MetaLoss = Callable[[Params, Episode, PRNGKey], tuple[Any, ...]]


def query_loss(
  adapt: Callable[[Params, Batch, PRNGKey], Params],
  predict: Callable[..., Any],
  loss_fn: LossFn,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLoss:
  """Builds the meta-loss of one task: the query loss after adaptation.

  ::

    L(predict(adapt(theta, support, rng), query inputs), query targets)

  Args:
    adapt: as in `MetaLearner`; it must be differentiable.
    predict: as in `MetaLearner`.
    loss_fn: L, `(predictions, targets) -> scalar`.
    metrics: more such functions, reported beside "loss".

  Returns:
    `meta_loss(meta_params, episode, rng) -> (scalar, metrics, None)`. None says
    that there is no new state.
  """
  predict = with_mask(predict)

  def query(task_params, inputs, rng, *, mask=None):
    del rng
    return predict(task_params, inputs, mask=mask), None

  return training_loss(adapt, query, loss_fn, metrics)


def training_loss(
  adapt: Callable[[Params, Batch, PRNGKey], Params],
  query: Callable[..., tuple[Any, Params]],
  loss_fn: LossFn,
  metrics: Mapping[str, LossFn] | None = None,
  *,
  of: str | None = None,
) -> MetaLoss:
  """Builds the meta-loss of one task, with the query in training mode.

  Args:
    adapt: `(meta_params, support, rng) -> task_params`; it must be
      differentiable.
    query: `(task_params, inputs, rng, *, mask) -> (predictions, params)`. The
      returned `params` have the new state. They may be None if there is no
      state.
    loss_fn: `(predictions, targets) -> scalar`.
    metrics: more such functions, reported beside "loss".
    of: the key of the meta-parameters under which the `params` of `query`
      belong. If None, they are the whole meta-parameters.

  Returns:
    `meta_loss(meta_params, episode, rng) -> (scalar, metrics, meta_params)`.
  """
  report = dict(metrics or {})

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    adapt_key, query_key = jax.random.split(rng)
    task_params = adapt(meta_params, episode.support, adapt_key)
    inputs, targets, mask = episode.query
    predictions, new = query(task_params, inputs, query_key, mask=mask)
    loss = over_examples(loss_fn, predictions, targets, mask)
    extra = {
      name: over_examples(f, predictions, targets, mask)
      for name, f in report.items()
    }
    if of is not None and new is not None:
      new = {**meta_params, of: new}
    return loss, {"loss": loss, **extra}, new

  return meta_loss


def gradient_of_mean(meta_loss: MetaLoss) -> MetaGrad:
  """Builds `meta_grad` from the meta-loss of one task.

  ::

    g = d/dtheta  1/T sum_t  meta_loss(theta, episode_t, rng_t)

  The whole chunk has one backward pass. Where the tasks still share weights,
  XLA merges their matrix products. It cannot merge them in a vmapped gradient
  per task.

  Args:
    meta_loss: `(meta_params, episode, rng) -> (scalar, metrics)` of one task.
      It may have a third result: the meta-parameters with new state, or None.
      The `State` nodes of `grads` hold the mean of the tasks' new states.

  Returns:
    `meta_grad(meta_params, episodes, rng) -> (grads, metrics)`. `episodes` have
    a leading task axis of size T. Task t uses the t-th key of
    `jax.random.split(rng, T)`.
  """

  def meta_grad(meta_params, episodes, rng):
    def one(params, episode, key):
      found = meta_loss(params, episode, key)
      check_task_loss(found, params)
      loss, metrics, *rest = found
      new = variables.states(rest[0]) if rest and rest[0] is not None else None
      return loss, metrics, new

    def mean_loss(weights):
      params = variables.combine(weights, meta_params)
      losses, metrics, new = over_tasks(one, params, episodes, rng)
      return losses.mean(), (
        variables.mean_metrics(metrics),
        variables.mean(new),
      )

    grads, (metrics, new) = jax.grad(mean_loss, has_aux=True)(
      variables.weights(meta_params)
    )
    state = meta_params if new is None else new
    return variables.combine(grads, state), metrics

  return meta_grad


def mean_of_gradients(
  estimator: Callable[[Params, Episode, PRNGKey], tuple[Params, Metrics]],
) -> MetaGrad:
  """Builds `meta_grad` from an estimate of the gradient on one task.

  ::

    g = 1/T sum_t  estimator(theta, episode_t, rng_t)

  Use it if the update is not the gradient of a loss, such as `theta - adapted`
  of Reptile. Use it, too, if the gradient is computed in another way, such as
  by implicit differentiation.

  Args:
    estimator: `(meta_params, episode, rng) -> (grads, metrics)` of one task.
      The `State` nodes of its `grads` hold the new state.

  Returns:
    `meta_grad`, with shapes and keys as in `gradient_of_mean`.
  """

  def meta_grad(meta_params, episodes, rng):
    grads, metrics = over_tasks(estimator, meta_params, episodes, rng)
    return variables.mean(grads), variables.mean_metrics(metrics)

  return meta_grad


def over_tasks(
  fn: Callable[[Params, Episode, PRNGKey], Any],
  params: Params,
  episodes: Episode,
  rng: PRNGKey,
) -> Any:
  """Maps a function of one task over a chunk of tasks. Each has its own key.

  If the tasks are sharded over explicit axes of a mesh (`jax.set_mesh`), the
  results are sharded in the same way. The compiler shards intermediate arrays.
  """
  keys = jax.random.split(rng, num_tasks(episodes))
  mapped = jax.vmap(fn, in_axes=(None, 0, 0), axis_name=TASK_AXIS)
  spec = jax.typeof(jax.tree.leaves(episodes)[0]).sharding.spec
  if spec and spec[0] is not None:
    mapped = jax.sharding.auto_axes(mapped, out_sharding=PartitionSpec(spec[0]))
  elif len(keys) == 1:
    # One task needs no task axis. XLA would copy arrays to move that axis.
    episode, key = jax.tree.map(lambda x: x[0], (episodes, keys))
    return jax.tree.map(lambda x: x[None], fn(params, episode, key))
  return mapped(params, episodes, keys)
