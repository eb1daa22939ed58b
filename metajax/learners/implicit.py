"""iMAML: the meta-gradient of where the inner loop ends, not of its way."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from metajax import inner_loop
from metajax.learners.meta_gradients import mean_of_gradients, query_loss
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


def imaml(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  strength: float = 2.0,
  damping: float = 0.0,
  cg_steps: int = 5,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Model-agnostic meta-learning with implicit gradients (iMAML).

  ::

    phi = num_steps of inner_optimizer on
          L(phi; support) + strength / 2 |phi - theta|^2
    g = mean over tasks of the solution x of
          ((1 + damping) I + H / strength) x = grad L(phi; query)

  with H the Hessian of L(.; support) at phi. Without damping, and if the inner
  loop and the solver have converged, g is the exact meta-gradient. Neither its
  cost nor its memory depends on the number of inner steps; only products with H
  are computed. The proximal term is there at test, too.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer.
    num_steps: inner steps in training; enough of them to converge.
    strength: lambda, of the proximal term. Where H has eigenvalues below
      -strength, the system is not positive definite.
    damping: makes the system better conditioned, and g shorter.
    cg_steps: steps of conjugate gradients, at most.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad`, on the query after adaptation, beside "loss".
    memory: not used, since nothing is stored for a backward pass.

  Returns:
    A `MetaLearner`, whose task parameters are a tree like its meta-parameters.

  Raises:
    ValueError: for a negative number of steps, or a strength that is not
      positive.

  References:
    Rajeswaran et al., `Meta-Learning with Implicit Gradients
    <https://arxiv.org/abs/1909.04630>`_, 2019, equations 4 and 6, algorithm 2.
  """
  del memory
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(
    num_steps=num_steps, num_eval_steps=num_eval_steps, cg_steps=cg_steps
  )
  if not strength > 0:
    raise ValueError(f"strength={strength}: must be above 0.")
  # Of parameters that are adapted already.
  query = query_loss(lambda phi, *_: phi, model.apply, loss_fn, metrics)

  def loss_of(params: Params, batch: Batch) -> Array:
    return loss_fn(model.apply(params, batch.inputs), batch.targets)

  def fit(meta_params: Params, support: Batch, num_steps: int) -> Params:
    def loss(params: Params, step: Array) -> Array:
      del step  # The same examples in every step.
      way = jax.tree.map(jnp.subtract, params, meta_params)
      distance = optax.tree.norm(way, squared=True)
      return loss_of(params, support) + strength / 2 * distance

    return inner_loop.minimize(
      loss, meta_params, inner_optimizer, num_steps
    ).params

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    return fit(meta_params, support, num_eval_steps)

  def estimate(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    support = episode.support
    phi = fit(meta_params, support, num_steps)
    grads, scores = jax.grad(query, has_aux=True)(phi, episode, rng)

    def system(x: Params) -> Params:
      slope = jax.grad(lambda params: loss_of(params, support))
      _, product = jax.jvp(slope, (phi,), (x,))  # H x
      return jax.tree.map(
        lambda v, hv: (1 + damping) * v + hv / strength, x, product
      )

    # Its tolerance is never reached in so few steps, or it is and all is well.
    solution, _ = cg(system, grads, x0=grads, maxiter=cg_steps)
    return solution, scores

  return MetaLearner(
    model.init, adapt, model.apply, mean_of_gradients(estimate)
  )
