"""Learned aggregation: weights of models as meta-parameters."""

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
  """Learns from which average of models a meta-learner should start.

  ::

    theta_g(w) = sum_m softmax(w_g)_m theta_m     for each group g of arrays
    dL/dw = (d theta / dw)^T  meta_grad(theta(w))

  so it works with whatever meta-learner, whose estimate of the meta-gradient
  is passed on to the weights (of one with a schedule, that at its end).

  Args:
    learner: adapts the average to the support set.
    members: its meta-parameters, a tree of arrays `[models, ...]`; what is in
      `State` nodes is averaged, too.
    groups: names the group of an array by its path, such as
      `lambda path: path` (each array on its own) or one name a layer; all
      arrays share their weights if None.

  Returns:
    A `MetaLearner` whose meta-parameters are logits `[models]` by group, equal
    ones at first.

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
    # In its state stands no gradient, but new state, of which nobody asks.
    return pull_back(variables.weights(grads))[0], metrics

  # The members are arguments of programs, and no constants.
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
  """Learns how much each adapted model's prediction counts, task by task.

  `adapt` lets every member learn the support set and weighs it by how well it
  explains it; `predict` pools the members' predictions::

    phi_m = adapt(theta_m; support)
    w = softmax(logits - beta L(phi_m; support))
    prediction = pool(predictions of phi_1 .. phi_M, w)

  The meta-parameters are the logits and beta, which start at 0: an ensemble of
  equals. Member m adapts with the m-th of the keys split from the task's. With
  members that do not adapt, n support examples and the mean of the negative
  log-likelihood as the loss, beta = n is Bayesian model averaging.

  Args:
    learner: adapts a member by its `adapt`; the members themselves stay as
      they are, so its `meta_grad` is not used.
    members: its meta-parameters, a tree of arrays `[models, ...]`.
    pool: `(predictions [models, n, ...], weights [models]) -> [n, ...]`:
      `average_probabilities`, `log_pool`, or `weighted_average` in regression.
    loss_fn: `(predictions, targets) -> scalar`, of the support and the query.
    metrics: more such functions to report, on the query.

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

  # The members are arguments of programs, and no constants.
  given = learner.carried(), members
  return MetaLearner(
    init, Partial(adapt, *given), predict, Partial(meta_grad, *given)
  )


def _mix(logits: Array, leaf: Array) -> Array:
  mean = weighted_sum(jax.nn.softmax(logits), leaf)
  return variables.narrow(mean, leaf.dtype)


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path))
