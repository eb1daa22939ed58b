"""iMAML: the meta-gradient by the implicit function theorem."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from metajax import inner_loop, variables
from metajax.forward import forward
from metajax.learners.meta_gradients import mean_of_gradients, training_loss
from metajax.learners.options import Option, Setting
from metajax.losses import over_examples
from metajax.numerics import check_number, wide
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


def _strength(strength: float, setting: Setting) -> float:
  if setting.inner_optimizer == "sgd" and setting.inner_lr * strength >= 2:
    raise ValueError(
      f"--inner_lr={setting.inner_lr}: times --proximal_strength={strength} "
      "must be below 2, or the inner loop diverges; give a smaller one of them."
    )
  return strength


OPTIONS = (
  Option(
    "proximal_strength",
    2.0,
    "Strength of the pull to the initialisation in the inner loss.",
    low=1e-6,
    argument="strength",
    of=_strength,
  ),
  Option(
    "damping",
    0.0,
    "Damping d of the linear system ((1 + d) I + H / strength) x = g, which "
    "conjugate gradients solve for the meta-gradient.",
    low=0.0,
  ),
  Option("cg_steps", 5, "Number of steps of conjugate gradients.", low=0),
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
  """Builds model-agnostic meta-learning with implicit gradients (iMAML).

  ::

    phi = num_steps of inner_optimizer on
          L(phi; support) + strength / 2 |phi - theta|^2
    g = mean over tasks of the solution x of
          ((1 + damping) I + H / strength) x = grad L(phi; query)

  where H is the Hessian of L(.; support) at phi. The meta-gradient g is exact
  if the damping is 0 and both the inner loop and the solver have converged. The
  cost and the memory of g do not depend on the number of inner steps. H itself
  is never computed, only products of H with vectors. `adapt` uses the proximal
  term at test time, too.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer.
    num_steps: inner steps in training. Take enough of them to converge.
    strength: lambda, the strength of the proximal term. Without damping, the
      system is not positive definite if H has an eigenvalue below -strength.
    damping: improves the condition of the system, and makes the norm of g
      smaller.
    cg_steps: largest number of conjugate gradient steps.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad`, on the query after adaptation, beside "loss".
    memory: not used, because nothing is stored for a backward pass.

  Returns:
    A `MetaLearner`, whose task parameters are a tree like its meta-parameters.

  Raises:
    ValueError: for a negative number of steps or damping, or a strength that is
      not positive. Traced numbers are not checked.

  References:
    Rajeswaran et al., `Meta-Learning with Implicit Gradients
    <https://arxiv.org/abs/1909.04630>`_, 2019, equations 4 and 6, algorithm 2.
  """
  del memory
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(
    num_steps=num_steps, num_eval_steps=num_eval_steps, cg_steps=cg_steps
  )
  check_number("strength", strength, above=0)
  check_number("damping", damping, at_least=0)
  model = forward(model)
  # The query loss of parameters that are already adapted.
  query = training_loss(lambda phi, *_: phi, model.train, loss_fn, metrics)

  def loss_of(
    params: Params, batch: Batch, rng: PRNGKey
  ) -> tuple[Array, Params]:
    predictions, new = model.train(params, batch.inputs, rng, mask=batch.mask)
    loss = over_examples(loss_fn, predictions, batch.targets, batch.mask)
    return loss, variables.states(new)

  def fit(
    meta_params: Params, support: Batch, num_steps: int, rng: PRNGKey
  ) -> Params:
    start = variables.weights(meta_params)

    def loss(params: Params, step: Array, state: tuple) -> tuple[Array, tuple]:
      way = jax.tree.map(jnp.subtract, params, start)
      distance = optax.tree.norm(way, squared=True)
      whole = variables.combine(params, *state, meta_params)
      value, new = loss_of(whole, support, jax.random.fold_in(rng, step))
      return value + strength / 2 * distance, (new,)

    adapted = inner_loop.minimize(
      loss,
      start,
      inner_optimizer,
      num_steps,
      state=(variables.states(meta_params),),
    )
    return variables.combine(adapted.params, *adapted.state, meta_params)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_eval_steps, rng)

  def estimate(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    fit_key, hessian_key, query_key = jax.random.split(rng, 3)
    # The solver captures the key's raw data. JAX's key reuse checker would
    # report the key itself as used twice.
    kind, noise = jax.random.key_impl(rng), jax.random.key_data(hessian_key)
    phi = fit(meta_params, episode.support, num_steps, fit_key)
    at = variables.weights(phi)

    def query_of(weights: Params) -> tuple[Array, tuple]:
      whole = variables.combine(weights, phi)
      loss, scores, new = query(whole, episode, query_key)
      return loss, (scores, variables.states(new))

    def support_of(weights: Params) -> Array:
      whole = variables.combine(weights, phi)
      key = jax.random.wrap_key_data(noise, impl=kind)
      return loss_of(whole, episode.support, key)[0]

    grads, (scores, state) = jax.grad(query_of, has_aux=True)(at)

    def system(x: Params) -> Params:
      narrow = jax.tree.map(lambda v, like: v.astype(like.dtype), x, at)
      _, product = jax.jvp(jax.grad(support_of), (at,), (narrow,))  # H x
      return jax.tree.map(
        lambda v, hv: ((1 + damping) * v + wide(hv) / strength).astype(v.dtype),
        x,
        product,
      )

    # The solver stops earlier if it reaches its default tolerance. It computes
    # in float32 at least, for parameters of any dtype.
    start = jax.tree.map(wide, grads)
    solution, _ = cg(system, start, x0=start, maxiter=cg_steps)
    solution = jax.tree.map(lambda v, like: v.astype(like.dtype), solution, at)
    return variables.combine(solution, state, meta_params), scores

  return MetaLearner(
    model.init, adapt, model.apply, mean_of_gradients(estimate)
  )
