"""Bayesian MAML: networks that move to the posterior of a task together."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

from metajax.batches import real
from metajax.context.dense import init_mlp, mlp
from metajax.context.objectives import maximum_likelihood, numbers, vectors
from metajax.numerics import check_counts, check_number
from metajax.predictive import NormalMixture
from metajax.types import Array, Batch, LossFn, MetaLearner, Params, PRNGKey


def bayesian_maml(
  *,
  num_outputs: int = 1,
  width: int = 40,
  particles: int = 5,
  num_steps: int = 5,
  step_size: float = 1e-3,
  noise: float = 0.1,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Learns initialisations of M networks, moved by Stein's gradient descent.

  ::

    theta_m <- theta_m + a/M sum_j [k(theta_j, theta_m) g_j
                                    + grad_{theta_j} k(theta_j, theta_m)]
    g_j = grad log p(support | theta_j)
    k(s, t) = exp(-|s - t|^2 / h),  h = median |s - t|^2 / log(M + 1)
    p(y | x, support) = 1/M sum_m N(y; f(x; theta_m), noise^2)

  The second term drives the networks apart, so that they disagree where the
  support tells nothing. One network is MAML with a sum of squares, divided by
  2 noise^2, as its inner loss. h is a constant for derivatives. Training
  maximises the mean log-likelihood of the query; the authors' chaser loss is
  not here.

  Args:
    num_outputs: numbers of a target.
    width: units of the two hidden layers of a network.
    particles: M.
    num_steps: inner steps, in training and at test.
    step_size: a. The log-likelihood is a sum over the support, so the largest
      stable step is of the order of noise^2 / examples.
    noise: standard deviation of the targets, in their units.
    metrics: `(predictions, targets) -> scalar` functions of the query, to be
      reported beside "loss".

  Returns:
    A `MetaLearner` that predicts `NormalMixture`s of M components.

  Raises:
    ValueError: for a number that is out of its range.

  References:
    Yoon et al., `Bayesian Model-Agnostic Meta-Learning
    <https://arxiv.org/abs/1806.03836>`_, 2018, section 3.1.
    Liu and Wang, `Stein Variational Gradient Descent
    <https://arxiv.org/abs/1608.04471>`_, 2016, algorithm 1.
  """
  check_counts(num_outputs=num_outputs, width=width, particles=particles)
  check_counts(num_steps=num_steps, at_least=0)
  for name, size in (("step_size", step_size), ("noise", noise)):
    check_number(name, size, above=0)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    sizes = [vectors(inputs).shape[1], width, width, num_outputs]
    keys = jax.random.split(rng, particles)
    return jax.vmap(lambda key: init_mlp(key, sizes))(keys)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    x, y = vectors(support.inputs), numbers(support, num_outputs)
    mask = real(support)[:, None]
    _, restore = ravel_pytree(jax.tree.map(lambda a: a[0], meta_params))

    def log_likelihood(theta: Array) -> Array:
      terms = norm.logpdf(y, mlp(restore(theta), x), noise)
      return jnp.where(mask, terms, 0).sum()

    def step(thetas: Array, _: None) -> tuple[Array, None]:
      gradients = jax.vmap(jax.grad(log_likelihood))(thetas)
      return thetas + step_size * stein(thetas, gradients), None

    thetas = jax.vmap(lambda p: ravel_pytree(p)[0])(meta_params)
    thetas, _ = jax.lax.scan(step, thetas, length=num_steps)
    return jax.vmap(restore)(thetas)

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> NormalMixture:
    del mask
    means = jax.vmap(mlp, (0, None), -1)(task_params, vectors(inputs))
    level = jnp.full_like(means, -jnp.log(particles))
    return NormalMixture(means, jnp.full_like(means, noise), level)

  return maximum_likelihood(
    init, adapt, predict, metrics, num_outputs=num_outputs
  )


def stein(points: Array, gradients: Array) -> Array:
  """Returns the directions `[M, d]` of Stein's variational gradient.

  Args:
    points: `[M, d]`.
    gradients: `[M, d]`, of the log density at the points.
  """
  count = len(points)
  apart = points[:, None] - points
  squares = jnp.square(apart).sum(-1)
  h = jax.lax.stop_gradient(jnp.median(squares) / jnp.log(count + 1.0))
  h = jnp.where(h > 0, h, 1)
  kernel = jnp.exp(-squares / h)
  # grad_{s} k(s, t) = 2 (t - s) / h k(s, t)
  repulsion = 2 / h * (apart * kernel[..., None]).sum(1)
  return (kernel @ gradients + repulsion) / count
