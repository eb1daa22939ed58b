"""Reptile: move the initialisation towards the tasks' adapted parameters."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.aggregation import pseudo_gradient
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


def reptile(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  inner_batch: int | None = None,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Reptile, batched version: the outer step is an average of models.

  The meta-parameters theta are an initialisation; the outer optimizer is given
  the difference between it and the average of the adapted parameters::

    phi_t(theta) = num_steps of inner_optimizer on  L(theta; batches of task t)
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
    num_steps: inner steps in training.
    inner_batch: examples of an inner step, in training and at test; None, or
      more than there are: all. The task is shuffled, and anew when all of it
      has been seen. (The paper's is 10 in 5-way, and 10 shots in training.)
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad` beside "loss": on the query after adaptation to the support
      alone, which costs an inner loop of its own.
    memory: see `inner_loop.minimize`; nothing is differentiated here.

  Returns:
    A `MetaLearner`, whose task parameters are a tree like its meta-parameters.

  Raises:
    ValueError: for a negative number of steps, or an empty batch.

  References:
    Nichol et al., `On First-Order Meta-Learning Algorithms
    <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2, and
    appendix A for the protocol.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(num_steps=num_steps, num_eval_steps=num_eval_steps)
  if inner_batch is not None and inner_batch < 1:
    raise ValueError(f"inner_batch={inner_batch}: must be 1 or more.")
  report = {"loss": loss_fn, **(metrics or {})}

  def fit(params: Params, task: Batch, num_steps: int, rng: PRNGKey) -> Params:
    count = len(task.targets)
    size = min(inner_batch or count, count)
    order = minibatches(rng, count, size, num_steps)

    def loss(params: Params, step: Array) -> Array:
      batch = task
      if size < count:
        batch = jax.tree.map(lambda x: x[order[step]], task)
      return loss_fn(model.apply(params, batch.inputs), batch.targets)

    return inner_loop.minimize(
      loss, params, inner_optimizer, num_steps, memory=memory
    ).params

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_eval_steps, rng)

  def learn(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *episode)
    phi = fit(meta_params, episode.support, num_steps, rng)
    predictions = model.apply(phi, episode.query.inputs)
    scores = {
      k: f(predictions, episode.query.targets) for k, f in report.items()
    }
    return fit(meta_params, together, num_steps, rng), scores

  def meta_grad(
    meta_params: Params, episodes: Episode, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    keys = jax.random.split(rng, len(episodes.query.targets))
    adapted, scores = jax.vmap(learn, in_axes=(None, 0, 0))(
      meta_params, episodes, keys
    )
    grads = pseudo_gradient(meta_params, adapted)
    return grads, {k: v.mean() for k, v in scores.items()}

  return MetaLearner(model.init, adapt, model.apply, meta_grad)


def minibatches(rng: PRNGKey, count: int, size: int, num_steps: int) -> Array:
  """Returns which of `count` examples each step sees, `[num_steps, size]`.

  All examples come in a random order, then all again in another, and so on.
  """
  passes = max(1, math.ceil(num_steps * size / count))
  orders = jax.vmap(lambda key: jax.random.permutation(key, count))(
    jax.random.split(rng, passes)
  )
  return orders.reshape(-1)[: num_steps * size].reshape(num_steps, size)
