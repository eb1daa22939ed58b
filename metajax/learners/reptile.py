"""Reptile: moves the initialisation towards the tasks' adapted parameters."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop, optimizers, variables
from metajax.aggregation import pseudo_gradient
from metajax.batches import concatenate, num_examples
from metajax.forward import forward
from metajax.learners.meta_gradients import over_tasks
from metajax.learners.options import Option
from metajax.losses import over_examples
from metajax.numerics import check_counts
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
  State,
)

# Folded into a task's key, for random numbers other than the examples' order.
APART = 2**30


OPTIONS = (
  Option(
    "inner_batch",
    0,
    "Number of examples of an inner step. 0: all examples of the task.",
    low=0,
    of=lambda value, _: value or None,
  ),
  Option(
    "carry_optimizer",
    False,
    "Keep the inner optimizer's moments from task to task, as in the code of "
    "Reptile's authors.",
  ),
)


def reptile(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  inner_batch: int | None = None,
  carry_optimizer: bool = False,
  held_out_report: bool = False,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds batched Reptile, whose outer step averages adapted models.

  The meta-parameters theta are an initialisation. The outer optimizer receives
  the difference between theta and the average of the adapted parameters::

    phi_t(theta) = num_steps of inner_optimizer on  L(theta; batches of task t)
    g = theta - mean over tasks of  phi_t(theta)

  The paper's outer optimizer is SGD with step size epsilon. In training, the
  inner loop learns from the support and the query of a task together. `adapt`
  learns from the support only. With one inner step of SGD, g is the step size
  times the gradient of the tasks' mean loss. More inner steps are needed for
  meta-learning.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer; the paper's is Adam with b1 = 0.
    num_steps: inner steps in training.
    inner_batch: number of examples of an inner step, in training and at test
      time. All examples are used if it is None or exceeds their number. The
      examples are shuffled, and shuffled again after each pass over the task.
      (The paper takes 10 in 5-way, and 10 shots in training.)
    carry_optimizer: whether the inner optimizer's state (Adam's moments) is
      carried from task to task, as in the authors' code. All tasks of a chunk
      start with the same state, and the mean of their final states is the next
      one. If False, the state is reset for every task, as in the paper's
      algorithm and in the results of this repository.
    held_out_report: see `metrics`.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      beside "loss", the mean loss of the inner steps. They are computed on the
      query with phi, which has already learned from the query. With
      `held_out_report`, they are computed with parameters that are adapted to
      the support alone. This takes as long as the step itself.
    memory: see `inner_loop.minimize`. Reptile does not differentiate through
      the inner loop.

  Returns:
    A `MetaLearner`, whose task parameters are a tree like its meta-parameters.
    With `carry_optimizer` both are `{"params": theta, "optimizer": state}`.

  Raises:
    ValueError: for a negative number of steps, or an `inner_batch` below 1.

  References:
    Nichol et al., `On First-Order Meta-Learning Algorithms
    <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2, and
    appendix A for the protocol.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(num_steps=num_steps, num_eval_steps=num_eval_steps)
  if inner_batch is not None:
    check_counts(inner_batch=inner_batch)
  report = dict(metrics or {})
  model = forward(model)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    params = model.init(rng, inputs)
    if not carry_optimizer:
      return params
    opt_state = optimizers.init(inner_optimizer, variables.weights(params))
    return {"params": params, "optimizer": State(opt_state)}

  def model_params(meta_params: Params) -> Params:
    return meta_params["params"] if carry_optimizer else meta_params

  def run(
    meta_params: Params, task: Batch, num_steps: int, rng: PRNGKey
  ) -> tuple[Params, Array]:
    """Returns the adapted meta-parameters and the mean loss of a task."""
    params = model_params(meta_params)
    opt_state = meta_params["optimizer"].value if carry_optimizer else None
    # `minibatches` uses `rng` itself, so fold in a number for other draws.
    draw_key = jax.random.fold_in(rng, APART)
    count = num_examples(task)
    size = min(inner_batch or count, count)
    order = None
    if size < count:
      order = minibatches(rng, count, size, num_steps, task.mask)

    def loss(weights: Params, step: Array, state: tuple) -> tuple[Array, tuple]:
      batch = task
      if order is not None:
        batch = jax.tree.map(lambda x: jnp.asarray(x)[order[step]], task)
      predictions, new = model.train(
        variables.combine(weights, *state, params),
        batch.inputs,
        jax.random.fold_in(draw_key, step),
        mask=batch.mask,
      )
      value = over_examples(loss_fn, predictions, batch.targets, batch.mask)
      return value, (variables.states(new),)

    loop = inner_loop.minimize(
      loss,
      variables.weights(params),
      inner_optimizer,
      num_steps,
      state=(variables.states(params),),
      opt_state=opt_state,
      memory=memory,
    )
    adapted = variables.combine(loop.params, *loop.state, params)
    if carry_optimizer:
      adapted = {"params": adapted, "optimizer": State(loop.opt_state)}
    return adapted, loop.losses.mean() if num_steps else jnp.zeros(())

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return run(meta_params, support, num_eval_steps, rng)[0]

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Any:
    return model.apply(model_params(task_params), inputs, mask=mask)

  def learn(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    phi, loss = run(meta_params, concatenate(*episode), num_steps, rng)
    scores = {"loss": loss}
    if report:
      report_key, query_key = jax.random.split(
        jax.random.fold_in(rng, APART + 1)
      )
      judged = phi
      if held_out_report:
        judged, _ = run(meta_params, episode.support, num_steps, report_key)
      inputs, targets, mask = episode.query
      predictions, _ = model.train(
        model_params(judged), inputs, query_key, mask=mask
      )
      scores |= {
        k: over_examples(f, predictions, targets, mask)
        for k, f in report.items()
      }
    return phi, scores

  def meta_grad(
    meta_params: Params, episodes: Episode, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    adapted, scores = over_tasks(learn, meta_params, episodes, rng)
    grads = pseudo_gradient(
      variables.weights(meta_params), variables.weights(adapted)
    )
    state = variables.mean(variables.states(adapted))
    return (
      variables.combine(grads, state, meta_params),
      variables.mean_metrics(scores),
    )

  return MetaLearner(init, adapt, predict, meta_grad)


def minibatches(
  rng: PRNGKey,
  count: int,
  size: int,
  num_steps: int,
  mask: Array | None = None,
) -> Array:
  """Returns the indices of each step's examples, `[num_steps, size]`.

  Each pass goes through all `count` examples in a new random order. With a mask
  `[count]`, it goes through the real examples only.
  """
  passes = max(1, math.ceil(num_steps * size / count))
  if mask is None:
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(
      jax.random.split(rng, passes)
    )
    return orders.reshape(-1)[: num_steps * size].reshape(num_steps, size)
  real = jnp.maximum(mask.sum(), 1)

  def draw(place: Array) -> Array:
    key = jax.random.fold_in(rng, place // real)
    draws = jax.random.uniform(key, (count,))
    # Real examples sort before padding.
    return jnp.argsort(jnp.where(mask, draws, 2.0))[place % real]

  return jax.vmap(jax.vmap(draw))(
    jnp.arange(num_steps * size).reshape(num_steps, size)
  )
