"""Reptile: move the initialisation towards the tasks' adapted parameters."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.aggregation import pseudo_gradient
from metajax.learners.full_batch import full_batch
from metajax.types import (
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Model,
  Params,
  PRNGKey,
)


def reptile(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "default",
) -> MetaLearner:
  """Reptile, batched version: the outer step is an average of models.

  The meta-parameters theta are an initialisation; the outer optimizer is given
  the difference between it and the average of the adapted parameters::

    phi_t(theta) = num_steps of inner_optimizer on  L(theta; all of task t)
    g = theta - mean over tasks of  phi_t(theta)

  SGD with step size epsilon as the outer optimizer is the paper's. In training
  a task's support and query are one set of examples; `adapt` sees the support
  only. With one inner step of SGD, g is the step size times the gradient of the
  tasks' joint loss; more steps are needed to learn to learn.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer; the paper's is Adam with b1 = 0, whose
      state starts anew with every task.
    num_steps: inner steps in training, all on the whole task.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad` beside "loss": on the query after adaptation to the support
      alone, which costs an inner loop of its own.
    memory: see `inner_loop.minimize`; nothing is differentiated here.

  Returns:
    A `MetaLearner`, whose task parameters are a tree like its meta-parameters.

  Raises:
    ValueError: for a negative number of steps.

  References:
    Nichol et al., `On First-Order Meta-Learning Algorithms
    <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(num_steps=num_steps, num_eval_steps=num_eval_steps)
  report = {"loss": loss_fn, **(metrics or {})}

  fit = full_batch(model, loss_fn, inner_optimizer, memory=memory)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    return fit(meta_params, support, num_eval_steps)

  def learn(meta_params: Params, episode: Episode) -> tuple[Params, Metrics]:
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *episode)
    phi = fit(meta_params, episode.support, num_steps)
    predictions = model.apply(phi, episode.query.inputs)
    scores = {
      k: f(predictions, episode.query.targets) for k, f in report.items()
    }
    return fit(meta_params, together, num_steps), scores

  def meta_grad(
    meta_params: Params, episodes: Episode, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    del rng
    adapted, scores = jax.vmap(learn, in_axes=(None, 0))(meta_params, episodes)
    grads = pseudo_gradient(meta_params, adapted)
    return grads, {k: v.mean() for k, v in scores.items()}

  return MetaLearner(model.init, adapt, model.apply, meta_grad)
