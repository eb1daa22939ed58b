"""CAVIA: only a few context parameters adapt, the network's weights do not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop, variables
from metajax.batches import only_array
from metajax.forward import forward
from metajax.learners.meta_gradients import gradient_of_mean, training_loss
from metajax.learners.options import Option
from metajax.losses import over_examples
from metajax.numerics import check_counts, floating
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)

OPTIONS = (
  Option(
    "num_context",
    5,
    "Number of context parameters, which adapt to each task.",
    low=1,
  ),
)


def cavia(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  first_order: bool = False,
  *,
  num_context: int = 5,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds fast context adaptation via meta-learning (CAVIA).

  ::

    c(theta) = num_steps of inner_optimizer, from 0, on
               L(f_theta([inputs, c]); support)
    g = d/dtheta  mean over tasks of  L(f_theta([inputs, c(theta)]); query)

  The context c is appended to every input as further features. Images get
  further channels, which are constant over the image. The size of the per-task
  parameters is `num_context`, for a network of any size.

  The paper appends the context to vectors only. It modulates a convolutional
  network in the middle instead (`num_context` of `models.conv.conv4`). The
  reason is that batch normalisation subtracts whatever a constant channel adds.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`. Its inputs have
      `num_context` more features than the data. The data are one array;
      integers are converted to float32.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer; the paper's is SGD of step size 1.
    num_steps: inner steps in training.
    first_order: take no gradient through the inner loop.
    num_context: size of c.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad`, on the query after adaptation, beside "loss".
    memory: see `inner_loop.minimize`.

  Returns:
    A `MetaLearner` whose meta-parameters are theta, and whose task parameters
    are theta and c.

  Raises:
    ValueError: for a negative number of steps, or no context.

  References:
    Zintgraf et al., `Fast Context Adaptation via Meta-Learning
    <https://arxiv.org/abs/1810.03642>`_, 2019, equations 5 to 7.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(num_steps=num_steps, num_eval_steps=num_eval_steps)
  check_counts(num_context=num_context)

  model = forward(model)

  def numbers(inputs: Any) -> Array:
    # An integer context would be truncated.
    return floating(only_array(inputs, "inputs", "cavia"))

  def widen(inputs: Any, context: Array) -> Array:
    inputs = numbers(inputs)
    shape = (*inputs.shape[:-1], num_context)
    context = jnp.broadcast_to(context.astype(inputs.dtype), shape)
    return jnp.concatenate([inputs, context], axis=-1)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    return model.init(rng, widen(inputs, jnp.zeros(num_context)))

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Any:
    inputs = widen(inputs, task_params["context"])
    return model.apply(task_params["params"], inputs, mask=mask)

  def query(
    task_params: Params, inputs: Any, rng: PRNGKey, mask: Array | None = None
  ) -> tuple[Any, Params]:
    inputs = widen(inputs, task_params["context"])
    return model.train(task_params["params"], inputs, rng, mask=mask)

  def fit(
    meta_params: Params, support: Batch, num_steps: int, rng: PRNGKey
  ) -> Params:
    inputs, targets, mask = support
    weights = variables.weights(meta_params)

    def loss(context: Array, step: Array, state: tuple) -> tuple[Array, tuple]:
      task_params = {
        "params": variables.combine(weights, *state, meta_params),
        "context": context,
      }
      key = jax.random.fold_in(rng, step)
      predictions, new = query(task_params, inputs, key, mask)
      value = over_examples(loss_fn, predictions, targets, mask)
      return value, (variables.states(new),)

    adapted = inner_loop.minimize(
      loss,
      jnp.zeros(num_context, numbers(inputs).dtype),
      inner_optimizer,
      num_steps,
      state=(variables.states(meta_params),),
      first_order=first_order,
      memory=memory,
    )
    params = variables.combine(weights, *adapted.state, meta_params)
    return {"params": params, "context": adapted.params}

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_eval_steps, rng)

  def train(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_steps, rng)

  meta_loss = training_loss(train, query, loss_fn, metrics)
  return MetaLearner(init, adapt, predict, gradient_of_mean(meta_loss))
