"""Predictions of several models combined into one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.aggregation.stacks import check_stack, normalized_weights
from metajax.types import Array


class Gaussian(NamedTuple):
  """A normal distribution for each prediction.

  Attributes:
    mean: array `[...]`.
    variance: array `[...]`.
  """

  mean: Array
  variance: Array


def average_probabilities(
  logits: Array, weights: ArrayLike | None = None
) -> Array:
  """Returns the log of the models' mean probabilities (linear pooling).

  ::

    log p = log sum_m w_m softmax(logits_m)

  Args:
    logits: `[models, ..., classes]`.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    Log probabilities `[..., classes]`, which serve as logits.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Lakshminarayanan et al., `Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles <https://arxiv.org/abs/1612.01474>`_, 2017,
    section 2.4.
  """
  column = _column(weights, logits)
  return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0, b=column)


def log_pool(logits: Array, weights: ArrayLike | None = None) -> Array:
  """Returns the log of the models' normalised geometric mean.

  ::

    log p = sum_m w_m log softmax(logits_m) - log of what makes it sum to one

  Args:
    logits: `[models, ..., classes]`.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    Log probabilities `[..., classes]`.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Hinton, `Training Products of Experts by Minimizing Contrastive Divergence
    <https://doi.org/10.1162/089976602760128018>`_, 2002, equation 1.
  """
  column = _column(weights, logits)
  return jax.nn.log_softmax((column * jax.nn.log_softmax(logits)).sum(0))


def weighted_vote(logits: Array, weights: ArrayLike | None = None) -> Array:
  """Returns each class's share of the models' votes for their likeliest class.

  Args:
    logits: `[models, ..., classes]`.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    Shares `[..., classes]`, which sum to one. A model's vote goes to the first
    of equal classes.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.
  """
  column = _column(weights, logits)
  votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
  return (column * votes).sum(0)


def mixture_moments(
  predictions: Gaussian, weights: ArrayLike | None = None
) -> Gaussian:
  """Returns mean and variance of a mixture of the models' Gaussians.

  ::

    mu = sum_m w_m mu_m
    var = sum_m w_m (var_m + (mu_m - mu)^2)

  Args:
    predictions: means and variances `[models, ...]`; zero variances leave how
      much the models disagree.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    Moments `[...]`.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Lakshminarayanan et al., `Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles <https://arxiv.org/abs/1612.01474>`_, 2017,
    section 2.4.
  """
  check_stack(predictions)
  means, variances = predictions
  column = _column(weights, means)
  mean = (column * means).sum(0)
  spread = variances + jnp.square(means - mean)
  return Gaussian(mean, (column * spread).sum(0))


def posterior_weights(
  log_likelihoods: Array, prior: ArrayLike | None = None
) -> Array:
  """Bayesian model averaging: the models' posterior given held-out examples.

  ::

    w_m = prior_m exp(sum_i log p_m(y_i | x_i)) / sum of the same over models

  Args:
    log_likelihoods: `[models, n]`, of the held-out examples.
    prior: `[models]`, not negative, of any scale; uniform if None.

  Returns:
    Weights `[models]`.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Hoeting et al., `Bayesian Model Averaging: A Tutorial
    <https://doi.org/10.1214/ss/1009212519>`_, 1999, equation 2.
  """
  prior = normalized_weights(prior, check_stack(log_likelihoods))
  return jax.nn.softmax(log_likelihoods.sum(-1) + jnp.log(prior))


def stacking_weights(log_likelihoods: Array, num_steps: int = 1000) -> Array:
  """Fits weights of the linear pool to held-out examples.

  Maximises the concave function ::

    1/n sum_i log sum_m w_m p_m(y_i | x_i)   over the simplex

  by expectation maximisation, whose steps stay on the simplex and never lower
  it; with `r_mi` the share of model m in example i::

    w_m <- 1/n sum_i r_mi,   r_mi = w_m p_mi / sum_k w_k p_ki

  Unlike Bayesian averaging it does not tend to a single model.

  Args:
    log_likelihoods: `[models, n]`, `log p_m(y_i | x_i)` of held-out examples.
    num_steps: steps from equal weights.

  Returns:
    Weights `[models]`, not negative, which sum to one.

  Raises:
    ValueError: see `check_stack`; if `num_steps` is negative.

  References:
    Yao et al., `Using Stacking to Average Bayesian Predictive Distributions
    <https://arxiv.org/abs/1704.02030>`_, 2018, section 3.1.
    Dempster et al., `Maximum Likelihood from Incomplete Data via the EM
    Algorithm <https://doi.org/10.1111/j.2517-6161.1977.tb01600.x>`_, 1977.
  """
  if num_steps < 0:
    raise ValueError(f"num_steps={num_steps}: must be 0 or more.")
  size = check_stack(log_likelihoods)

  def step(log_weights: Array, _: None) -> tuple[Array, None]:
    shares = jax.nn.log_softmax(log_weights[:, None] + log_likelihoods, axis=0)
    return jax.nn.logsumexp(shares, axis=1) - jnp.log(shares.shape[1]), None

  start = jnp.full(size, -jnp.log(size), log_likelihoods.dtype)
  log_weights, _ = jax.lax.scan(step, start, length=num_steps)
  return jax.nn.softmax(log_weights)


def _column(weights: ArrayLike | None, stack: Array) -> Array:
  """Returns weights that broadcast against `[models, ...]`."""
  normal = normalized_weights(weights, check_stack(stack))
  return normal.reshape(-1, *[1] * (stack.ndim - 1))
