"""Bootstrapped meta-gradients: match the predictions of later inner steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.batches import only_array
from metajax.distillation import regression_distillation, softened_kl
from metajax.forward import forward
from metajax.learners.full_batch import full_batch
from metajax.learners.meta_gradients import gradient_of_mean
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

Match = Callable[[Array, Array], Array]


def bmg(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  target_steps: int = 2,
  match: Match | None = None,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds bootstrapped meta-gradients (BMG) of an initialisation.

  The target is the learner itself after K + L inner steps, the last of which is
  on the query. The meta-gradient pulls the learner after K steps towards the
  target's predictions::

    phi(theta) = num_steps (K) of inner_optimizer on  L(theta; support)
    phi~ = L - 1 more steps on the support, then one step on  L(.; query)
    g = d/dtheta  mean over tasks of
        match(predict(phi(theta), query), constant predict(phi~, query))

  The gradient does not pass through the target, so L costs time but no memory.
  With `target_steps=0` the target is phi itself and g is zero.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer. Its state is reset after the K steps,
      and again before the step on the query.
    num_steps: K, inner steps in training.
    target_steps: L, further steps to the target.
    match: `(predictions, target predictions) -> scalar`, a mean over examples.
      If None, it is `softened_kl` of logits for integer targets and
      `regression_distillation` for others.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad` beside "loss", on the query after K steps.
    memory: see `inner_loop.minimize`.

  Returns:
    A `MetaLearner`, whose task parameters are a tree like its meta-parameters.

  Raises:
    ValueError: for a negative number of steps.

  References:
    Flennerhag et al., `Bootstrapped Meta-Learning
    <https://arxiv.org/abs/2109.04504>`_, 2022, sections 3 and 6.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(
    num_steps=num_steps,
    target_steps=target_steps,
    num_eval_steps=num_eval_steps,
  )
  report = {"loss": loss_fn, **(metrics or {})}

  model = forward(model)
  fit = full_batch(model, loss_fn, inner_optimizer, memory=memory)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_eval_steps, rng)

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    fit_key, later_key, last_key, query_key = jax.random.split(rng, 4)
    support, query = episode
    phi = fit(meta_params, support, num_steps, fit_key)
    target = jax.lax.stop_gradient(phi)
    if target_steps:
      target = fit(target, support, target_steps - 1, later_key)
      target = fit(target, query, 1, last_key)
    (predictions, new), (goal, _) = (
      model.train(params, query.inputs, query_key, mask=query.mask)
      for params in (phi, target)
    )
    distance = match or _match_of(query.targets)
    loss = over_examples(
      distance, predictions, jax.lax.stop_gradient(goal), query.mask
    )
    scores = {
      k: over_examples(f, predictions, query.targets, query.mask)
      for k, f in report.items()
    }
    return loss, scores, new

  return MetaLearner(
    model.init, adapt, model.apply, gradient_of_mean(meta_loss)
  )


def _match_of(targets: Any) -> Match:
  targets = only_array(targets, "targets", "bmg without match")
  is_class = jnp.issubdtype(targets.dtype, jnp.integer)
  return softened_kl if is_class else regression_distillation
