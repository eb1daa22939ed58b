"""Meta-SGD: learns an initialisation and a step size for every parameter."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop, variables
from metajax.forward import forward
from metajax.learners.full_batch import full_batch
from metajax.learners.meta_gradients import gradient_of_mean, training_loss
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)


def meta_sgd(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds Meta-SGD: MAML with a learned step size for every parameter.

  ::

    phi_{k+1} = phi_k + r * u(grad L(phi_k; support)),   phi_0 = theta
    g = d/d(theta, r)  mean over tasks of  L(phi(theta, r); query)

  where u is the inner optimizer. r has the shape of theta, starts at 1 and may
  become negative. With SGD of step size a, the paper's alpha is a r.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer. The paper takes one step of SGD.
    num_steps: inner steps in training.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad`, on the query after adaptation, beside "loss".
    memory: see `inner_loop.minimize`.

  Returns:
    A `MetaLearner` whose meta-parameters are `{"params": theta, "rates": r}`,
    and whose task parameters are a tree like theta.

  Raises:
    ValueError: for a negative number of steps.

  References:
    Li et al., `Meta-SGD: Learning to Learn Quickly for Few-Shot Learning
    <https://arxiv.org/abs/1707.09835>`_, 2017, equation 2 and algorithm 1.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(num_steps=num_steps, num_eval_steps=num_eval_steps)

  model = forward(model)

  def init(rng: PRNGKey, inputs: Array) -> Params:
    params = model.init(rng, inputs)
    rates = jax.tree.map(jnp.ones_like, variables.weights(params))
    return {"params": params, "rates": rates}

  def fit(
    meta_params: Params, support: Batch, num_steps: int, rng: PRNGKey
  ) -> Params:
    rates = meta_params["rates"]
    optimizer = optax.chain(
      inner_optimizer,
      optax.stateless(
        lambda updates, _: jax.tree.map(jnp.multiply, rates, updates)
      ),
    )
    learn = full_batch(model, loss_fn, optimizer, memory=memory)
    return learn(meta_params["params"], support, num_steps, rng)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_eval_steps, rng)

  def train(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_steps, rng)

  meta_loss = training_loss(train, model.train, loss_fn, metrics, of="params")
  return MetaLearner(init, adapt, model.apply, gradient_of_mean(meta_loss))
