"""ALPaCA: exact Bayesian linear regression on learned features."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

from metajax.batches import real
from metajax.context.dense import init_mlp, mlp
from metajax.context.objectives import maximum_likelihood, numbers, vectors
from metajax.forward import Forward, stateless
from metajax.numerics import check_counts, check_number
from metajax.predictive import Normal
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)

HIGHEST = jax.lax.Precision.HIGHEST


def alpaca(
  model: Model | None = None,
  *,
  num_outputs: int = 1,
  width: int = 128,
  noise: float = 0.1,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Infers the last layer exactly, given learned features (ALPaCA).

  ::

    y = K' f(x) + e,    e_j ~ N(0, s_j^2),    K_j ~ N(K0_j, s_j^2 P0^-1)

    P = P0 + F' F,      K = P^-1 (P0 K0 + F' Y)
    y ~ N(K' f(x), s^2 (1 + f(x)' P^-1 f(x)))

  with the features F = f(X) and targets Y of the support. Features, K0, P0 and
  s are trained by the likelihood of the query. P0 = L0 L0' is positive definite
  by its factor, and larger by the rounding of P.

  Args:
    model: f, any model that returns features `[n, width]`; None: dense layers,
      three of ReLU and a linear one.
    num_outputs: d, numbers of a target.
    width: the number of features of the default model.
    noise: s before training, in units of the targets.
    metrics: `(predictions, targets) -> scalar` functions of the query, reported
      by `meta_grad` beside "loss".

  Returns:
    A `MetaLearner` that predicts a `Normal` of `[n, d]`. Its task parameters
    have the posterior mean K and the factor of P.

  Raises:
    ValueError: if the noise is not positive, or the model keeps running
      statistics.

  References:
    Harrison et al., `Meta-Learning Priors for Efficient Online Bayesian
    Regression <https://arxiv.org/abs/1807.08912>`_, 2018, section 3. The paper
    fixes s.
  """
  check_counts(num_outputs=num_outputs, width=width)
  check_number("noise", noise, above=0, below=jnp.inf)
  features = stateless(_layers(width) if model is None else model, "alpaca")

  def init(rng: PRNGKey, inputs: Any) -> Params:
    model_key, mean_key = jax.random.split(rng)
    params = features.init(model_key, inputs)
    size = features.apply(params, inputs).shape[1]
    mean = jax.random.normal(mean_key, (size, num_outputs)) / size**0.5
    return {
      "model": params,
      "mean": mean,
      # Strictly below the diagonal; and the logarithm of the diagonal.
      "lower": jnp.zeros((size, size)),
      "log_diagonal": jnp.zeros(size),
      "log_noise": jnp.full(num_outputs, jnp.log(noise)),
    }

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    f = features.apply(meta_params["model"], support.inputs, mask=support.mask)
    f = jnp.where(real(support)[:, None], f, 0)
    y = jnp.where(real(support)[:, None], numbers(support, num_outputs), 0)
    factor = jnp.tril(meta_params["lower"], -1)
    factor += jnp.diag(jnp.exp(meta_params["log_diagonal"]))
    prior = jnp.matmul(factor, factor.T, precision=HIGHEST)
    products = jnp.matmul(f.T, f, precision=HIGHEST)
    # The rounding of P, without which P of large features has no factor.
    rounding = jnp.finfo(f.dtype).eps * jnp.trace(prior + products)
    prior += jax.lax.stop_gradient(rounding) * jnp.eye(len(prior))
    precision = prior + products
    moments = jnp.matmul(prior, meta_params["mean"], precision=HIGHEST)
    moments += jnp.matmul(f.T, y, precision=HIGHEST)
    factor = jnp.linalg.cholesky(precision)
    mean = cho_solve((factor, True), moments)
    return {"params": meta_params, "mean": mean, "factor": factor}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Normal:
    params = task_params["params"]
    f = features.apply(params["model"], inputs, mask=mask)
    mean = jnp.matmul(f, task_params["mean"], precision=HIGHEST)
    z = solve_triangular(task_params["factor"], f.T, lower=True)
    spread = jnp.sqrt(1 + jnp.square(z).sum(0))
    return Normal(mean, spread[:, None] * jnp.exp(params["log_noise"]))

  return maximum_likelihood(
    init, adapt, predict, metrics, num_outputs=num_outputs
  )


def _layers(width: int) -> Forward:
  def init(rng: PRNGKey, inputs: Any) -> Params:
    return init_mlp(rng, [vectors(inputs).shape[1], *[width] * 4])

  def apply(params: Params, inputs: Any, *, mask: Array | None = None) -> Array:
    del mask
    return mlp(params, vectors(inputs))

  def train(
    params: Params, inputs: Any, rng: PRNGKey, *, mask: Array | None = None
  ) -> tuple[Array, Params]:
    del rng
    return apply(params, inputs, mask=mask), params

  return Forward(init, train, apply)
