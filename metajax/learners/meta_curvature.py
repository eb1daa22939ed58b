"""Meta-Curvature: learn an initialisation, and how to turn gradients."""

import math
from collections.abc import Mapping
from typing import Any

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


def meta_curvature(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Meta-Curvature, MAML that learns a linear map of each gradient.

  ::

    phi_{k+1} = phi_k + u(M grad L(phi_k; support)),   phi_0 = theta
    M G = G x_1 M_p x_2 M_i x_3 M_o
    g = d/d(theta, M)  mean over tasks of  L(phi(theta, M); query)

  where u is the inner optimizer, and G x_k A multiplies axis k of a gradient by
  a square matrix. A kernel of `[positions..., inputs, outputs]` has one of its
  positions, one of its inputs and one of its outputs, a vector one of its
  numbers. All begin as identities, with which it is MAML.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer; the paper's is SGD.
    num_steps: inner steps in training.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad`, on the query after adaptation, beside "loss".
    memory: see `inner_loop.minimize`.

  Returns:
    A `MetaLearner` whose meta-parameters are `{"params": theta, "curvature":
    M}`, and whose task parameters are a tree like theta.

  Raises:
    ValueError: for a negative number of steps.

  References:
    Park and Oliva, `Meta-Curvature <https://arxiv.org/abs/1902.03356>`_, 2019,
    section 3 (its MC2).
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(num_steps=num_steps, num_eval_steps=num_eval_steps)
  model = forward(model)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    params = model.init(rng, inputs)
    curvature = jax.tree.map(_identities, variables.weights(params))
    return {"params": params, "curvature": curvature}

  def fit(
    meta_params: Params, support: Batch, num_steps: int, rng: PRNGKey
  ) -> Params:
    def turn(grads: Params, _: Any) -> Params:
      return jax.tree.map(_turned, grads, meta_params["curvature"])

    optimizer = optax.chain(optax.stateless(turn), inner_optimizer)
    learn = full_batch(model, loss_fn, optimizer, memory=memory)
    return learn(meta_params["params"], support, num_steps, rng)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_eval_steps, rng)

  def train(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_steps, rng)

  meta_loss = training_loss(train, model.train, loss_fn, metrics, of="params")
  return MetaLearner(init, adapt, model.apply, gradient_of_mean(meta_loss))


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns a shape as positions, inputs and outputs."""
  return (math.prod(shape[:-2]), *shape[-2:]) if len(shape) > 3 else shape


def _identities(weights: Array) -> dict[str, Array]:
  return {
    str(axis): jnp.eye(size, dtype=jnp.result_type(weights))
    for axis, size in enumerate(_axes(jnp.shape(weights)))
  }


def _turned(grads: Array, matrices: dict[str, Array]) -> Array:
  turned = grads.reshape(_axes(grads.shape))
  for axis, matrix in matrices.items():
    turned = jnp.tensordot(matrix, turned, (1, int(axis)))
    turned = jnp.moveaxis(turned, 0, int(axis))
  return turned.reshape(grads.shape)
