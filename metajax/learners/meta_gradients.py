"""The two ways to make a chunk's meta-gradient from a function of one task."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

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
MetaLoss = Callable[[Params, Episode, PRNGKey], tuple[Array, Metrics]]


def query_loss(
  adapt: Callable[[Params, Batch, PRNGKey], Params],
  predict: Callable[[Params, Array], Array],
  loss_fn: LossFn,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLoss:
  """Builds the usual meta-loss of one task, that of the query after adaptation.

  ::

    L(predict(adapt(theta, support, rng), query inputs), query targets)

  Args:
    adapt: as in `MetaLearner`, as it is to be differentiated.
    predict: as in `MetaLearner`.
    loss_fn: L, `(predictions, targets) -> scalar`.
    metrics: more such functions, reported beside "loss".

  Returns:
    `meta_loss(meta_params, episode, rng) -> (scalar, metrics)`.
  """
  report = dict(metrics or {})

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    task_params = adapt(meta_params, episode.support, rng)
    predictions = predict(task_params, episode.query.inputs)
    targets = episode.query.targets
    loss = loss_fn(predictions, targets)
    extra = {name: f(predictions, targets) for name, f in report.items()}
    return loss, {"loss": loss, **extra}

  return meta_loss


def gradient_of_mean(meta_loss: MetaLoss) -> MetaGrad:
  """Builds `meta_grad` from the meta-loss of one task.

  ::

    g = d/dtheta  1/T sum_t  meta_loss(theta, episode_t, rng_t)

  One backward pass for the whole chunk: wherever the tasks still share
  weights, their matrix products merge, which a vmapped gradient per task
  cannot do.

  Args:
    meta_loss: `(meta_params, episode, rng) -> (scalar, metrics)`, one task.

  Returns:
    `meta_grad(meta_params, episodes, rng) -> (grads, metrics)`, where
    `episodes` have a leading task axis of size T and task t sees the t-th key
    of `jax.random.split(rng, T)`.
  """

  def meta_grad(meta_params, episodes, rng):
    def mean_loss(params):
      losses, metrics = _over_tasks(meta_loss, params, episodes, rng)
      return losses.mean(), _mean(metrics)

    return jax.grad(mean_loss, has_aux=True)(meta_params)

  return meta_grad


def mean_of_gradients(
  estimator: Callable[[Params, Episode, PRNGKey], tuple[Params, Metrics]],
) -> MetaGrad:
  """Builds `meta_grad` from an estimate of the gradient on one task.

  ::

    g = 1/T sum_t  estimator(theta, episode_t, rng_t)

  For learners whose update is no gradient of a loss, such as Reptile's
  `theta - adapted`, or whose gradient is found another way (implicit solves).

  Args:
    estimator: `(meta_params, episode, rng) -> (grads, metrics)`, one task.

  Returns:
    `meta_grad`, with shapes and keys as in `gradient_of_mean`.
  """

  def meta_grad(meta_params, episodes, rng):
    return _mean(_over_tasks(estimator, meta_params, episodes, rng))

  return meta_grad


def _over_tasks(fn, params, episodes, rng):
  num_tasks = jax.tree.leaves(episodes)[0].shape[0]
  keys = jax.random.split(rng, num_tasks)
  return jax.vmap(fn, in_axes=(None, 0, 0))(params, episodes, keys)


def _mean(tree):
  return jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)
