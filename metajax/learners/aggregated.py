"""Learned aggregation: the meta-parameters are the weights of models."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from metajax import variables
from metajax.aggregation.stacks import check_stack, weighted_sum
from metajax.forward import with_mask
from metajax.learners.meta_gradients import gradient_of_mean, query_loss
from metajax.losses import over_examples
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Params,
  PRNGKey,
)

Groups = Callable[[str], str]  # the path of an array -> the name of its group


def learned_average(
  learner: MetaLearner, members: Params, groups: Groups | None = None
) -> MetaLearner:
  """Learns the average of models from which a meta-learner starts.

  ::

    theta_g(w) = sum_m softmax(w_g)_m theta_m     for each group g of arrays
    dL/dw = (d theta / dw)^T  meta_grad(theta(w))

  It works with any meta-learner: the chain rule passes the learner's estimate
  of the meta-gradient on to the weights. If the learner has a schedule, its
  final `meta_grad` is used.

  Args:
    learner: adapts the average to the support set.
    members: the models to average, a tree of arrays `[models, ...]`. Each is
      a tree of the learner's meta-parameters. `State` nodes are averaged, too.
    groups: maps the path of an array to the name of its group. Examples are
      `lambda path: path` (each array is a group) and a function that returns
      one name a layer. If None, all arrays share one set of weights.

  Returns:
    A `MetaLearner` whose meta-parameters are a dictionary from the name of a
    group to logits `[models]`. All logits start at 0.

  Raises:
    ValueError: see `check_stack`.
  """
  size = check_stack(members)
  group_of = groups or (lambda path: "all")

  def average(members: Params, logits: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _mix(logits[group_of(_name(path))], leaf), members
    )

  def init(rng: PRNGKey, inputs: Any) -> Params:
    del rng, inputs
    paths = jax.tree_util.tree_leaves_with_path(members)
    names = sorted({group_of(_name(path)) for path, _ in paths})
    return {name: jnp.zeros(size) for name in names}

  def adapt(
    learner: MetaLearner,
    members: Params,
    logits: Params,
    support: Batch,
    rng: PRNGKey,
  ) -> Params:
    return learner.adapt(average(members, logits), support, rng)

  def meta_grad(
    learner: MetaLearner,
    members: Params,
    logits: Params,
    episodes: Episode,
    rng: PRNGKey,
  ) -> tuple[Params, Metrics]:
    def start(logits: Params) -> tuple[Params, Params]:
      theta = average(members, logits)
      return variables.weights(theta), theta

    _, pull_back, theta = jax.vjp(start, logits, has_aux=True)
    grads, metrics = learner.meta_grad(theta, episodes, rng)
    # The `State` nodes of `grads` hold new state, which is dropped here.
    return pull_back(variables.weights(grads))[0], metrics

  # `Partial` makes the members arguments of compiled programs, not constants.
  given = learner.carried(), members
  return MetaLearner(
    init, Partial(adapt, *given), learner.predict, Partial(meta_grad, *given)
  )


def learned_ensemble(
  learner: MetaLearner,
  members: Params,
  pool: Callable[[Array, Array], Array],
  loss_fn: LossFn,
  *,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Learns to weight the predictions of adapted models for each task.

  `adapt` adapts every member to the support set. It computes the weight of a
  member from its loss on that support set. `predict` pools the members'
  predictions::

    phi_m = adapt(theta_m; support)
    w = softmax(logits - beta L(phi_m; support))
    prediction = pool(predictions of phi_1 .. phi_M, w)

  The meta-parameters are the logits and beta. They start at 0, so that all
  members have the same weight. Member m adapts with the m-th key split from the
  task's key. The method is Bayesian model averaging with beta = n if the
  members do not adapt, the support has n examples and the loss is the mean
  negative log-likelihood.

  Args:
    learner: adapts a member by its `adapt`. The members are not trained, so the
      learner's `meta_grad` is not used.
    members: the models, a tree of arrays `[models, ...]`. Each is a tree of the
      learner's meta-parameters.
    pool: `(predictions [models, n, ...], weights [models]) -> [n, ...]`. Use
      `average_probabilities` or `log_pool` for logits, and `weighted_average`
      for regression.
    loss_fn: `(predictions, targets) -> scalar`, for the support and the query.
    metrics: more such functions to be reported by `meta_grad`, on the query.

  Returns:
    A `MetaLearner` with meta-parameters `{"logits": [models], "beta": scalar}`.

  Raises:
    ValueError: see `check_stack`.
  """
  size = check_stack(members)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    del rng, inputs
    return {"logits": jnp.zeros(size), "beta": jnp.zeros(())}

  def adapt(
    learner: MetaLearner,
    members: Params,
    meta_params: Params,
    support: Batch,
    rng: PRNGKey,
  ) -> Params:
    ask = with_mask(learner.predict)

    def learn(member: Params, key: PRNGKey) -> tuple[Params, Array]:
      inputs, targets, mask = support
      adapted = learner.adapt(member, support, key)
      predictions = ask(adapted, inputs, mask=mask)
      return adapted, over_examples(loss_fn, predictions, targets, mask)

    adapted, losses = jax.vmap(learn)(members, jax.random.split(rng, size))
    weights = jax.nn.softmax(
      meta_params["logits"] - meta_params["beta"] * losses
    )
    return {"members": adapted, "weights": weights}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Array:
    ask = functools.partial(with_mask(learner.predict), mask=mask)
    predictions = jax.vmap(ask, in_axes=(0, None))(
      task_params["members"], inputs
    )
    return pool(predictions, task_params["weights"])

  def meta_grad(
    learner: MetaLearner, members: Params, *arguments: Any
  ) -> tuple[Params, Metrics]:
    start = functools.partial(adapt, learner, members)
    meta_loss = query_loss(start, predict, loss_fn, metrics)
    return gradient_of_mean(meta_loss)(*arguments)

  # `Partial` makes the members arguments of compiled programs, not constants.
  given = learner.carried(), members
  return MetaLearner(
    init, Partial(adapt, *given), predict, Partial(meta_grad, *given)
  )


def _mix(logits: Array, leaf: Array) -> Array:
  mean = weighted_sum(jax.nn.softmax(logits), leaf)
  return variables.narrow(mean, leaf.dtype)


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path))
