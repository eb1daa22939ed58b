"""Combines the predictions of several models, in float32 at least.

A logit of -inf masks a class. A model may not mask all classes of an example.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.aggregation.stacks import check_stack, normalized_weights
from metajax.numerics import check_counts, largest_logits, wide
from metajax.types import Array

# Replaces log 0 = -inf inside sums. Its exp and the derivative of that are 0.
LOG_ZERO = -1e30


class Gaussian(NamedTuple):
  """Normal distributions, one for each prediction.

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
    Log probabilities `[..., classes]`, which can be used as logits. They are
    -inf for a class that all models mask.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Lakshminarayanan et al., `Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles <https://arxiv.org/abs/1612.01474>`_, 2017,
    section 2.4.
  """
  column = _column(weights, logits)
  log_p = jax.nn.log_softmax(wide(logits))
  log_p = jnp.where(jnp.isneginf(log_p), LOG_ZERO, log_p)
  mean = jax.nn.logsumexp(log_p, axis=0, b=column)
  return jnp.where(mean > LOG_ZERO / 2, mean, -jnp.inf)


def log_pool(logits: Array, weights: ArrayLike | None = None) -> Array:
  """Returns the log of the models' normalised geometric mean.

  ::

    log p = sum_m w_m log softmax(logits_m) - log Z,   Z such that p sums to one

  Args:
    logits: `[models, ..., classes]`.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    Log probabilities `[..., classes]`. They are -inf for a class that a model
    of positive weight masks. If this masks all classes, all are -inf.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Hinton, `Training Products of Experts by Minimizing Contrastive Divergence
    <https://doi.org/10.1162/089976602760128018>`_, 2002, equation 1.
  """
  column = _column(weights, logits)
  log_p = jax.nn.log_softmax(wide(logits))
  is_masked = jnp.isneginf(log_p)
  vetoed = (is_masked & (column > 0)).any(0)
  mean = (column * jnp.where(is_masked, 0, log_p)).sum(0)
  pooled = jax.nn.log_softmax(jnp.where(vetoed, LOG_ZERO, mean))
  return jnp.where(vetoed, -jnp.inf, pooled)


def weighted_vote(logits: Array, weights: ArrayLike | None = None) -> Array:
  """Counts the models' votes, one a model for its most probable class.

  Args:
    logits: `[models, ..., classes]`.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    The share of votes of each class, `[..., classes]`. Shares sum to one. A
    model with several most probable classes votes for the first of them.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.
  """
  column = _column(weights, logits)
  votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
  return (column * votes).sum(0)


def mixture_moments(
  predictions: Gaussian, weights: ArrayLike | None = None
) -> Gaussian:
  """Returns the mean and the variance of a mixture of the models' Gaussians.

  ::

    mu = sum_m w_m mu_m
    var = sum_m w_m (var_m + (mu_m - mu)^2)

  Args:
    predictions: means and variances `[models, ...]`. With variances of zero,
      the result's variance is the variance between the models.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    Mean and variance `[...]`.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Lakshminarayanan et al., `Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles <https://arxiv.org/abs/1612.01474>`_, 2017,
    section 2.4.
  """
  size = check_stack(predictions)
  if predictions.mean.shape != predictions.variance.shape:
    raise ValueError(
      f"predictions: means of shape {predictions.mean.shape} but variances of "
      f"{predictions.variance.shape}, must be equal."
    )
  means, variances = map(wide, predictions)
  column = _broadcast(weights, size, means)
  mean = (column * means).sum(0)
  spread = variances + jnp.square(means - mean)
  return Gaussian(mean, (column * spread).sum(0))


def posterior_weights(
  log_likelihoods: Array, prior: ArrayLike | None = None
) -> Array:
  """Returns the posterior of the models, for Bayesian model averaging.

  ::

    w_m = prior_m exp(sum_i log p_m(y_i | x_i)) / sum of the same over models

  A model that gives an example probability 0 (-inf) has weight 0. If this
  excludes all models, the models with the fewest such examples are kept and
  compared on their other examples. This is the limit in which every zero is
  replaced by the same, ever smaller likelihood.

  Args:
    log_likelihoods: `[models, n]`, `log p_m(y_i | x_i)` of held-out examples.
    prior: `[models]`, not negative, of any scale; uniform if None.

  Returns:
    Weights `[models]`.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    Hoeting et al., `Bayesian Model Averaging: A Tutorial
    <https://doi.org/10.1214/ss/1009212519>`_, 1999, equation 2.
  """
  size = _check_likelihoods(log_likelihoods)
  prior = normalized_weights(prior, size)
  possible, is_impossible = _possible(log_likelihoods)
  # Subtract the best model's term of each example, so that sums keep digits.
  evidence = (possible - possible.max(0)).sum(-1)
  misses = jnp.where(prior > 0, is_impossible.sum(-1), is_impossible.size + 1)
  is_left = misses == misses.min()
  log_prior = jnp.log(jnp.where(is_left, prior, 1))
  return jax.nn.softmax(jnp.where(is_left, evidence + log_prior, -jnp.inf))


def stacking_weights(log_likelihoods: Array, num_steps: int = 1000) -> Array:
  """Fits the weights of the linear pool to held-out examples (stacking).

  Maximises the concave function ::

    1/n sum_i log sum_m w_m p_m(y_i | x_i)   over the simplex

  by expectation maximisation. Its steps stay on the simplex and never lower the
  function::

    w_m <- 1/n sum_i r_mi,   r_mi = w_m p_mi / sum_k w_k p_ki

  where `r_mi` is the responsibility of model m for example i. Unlike the
  weights of Bayesian model averaging, these need not concentrate on one model
  as n grows.

  Models may give examples probability 0 (-inf). An example to which all models
  give probability 0 does not prefer any model.

  Args:
    log_likelihoods: `[models, n]`, `log p_m(y_i | x_i)` of held-out examples.
    num_steps: number of steps. The first starts with equal weights.

  Returns:
    Weights `[models]`, not negative, which sum to one.

  Raises:
    ValueError: see `check_stack`; if `num_steps` is negative, or there are no
      examples.

  References:
    Yao et al., `Using Stacking to Average Bayesian Predictive Distributions
    <https://arxiv.org/abs/1704.02030>`_, 2018, section 3.1.
    Dempster et al., `Maximum Likelihood from Incomplete Data via the EM
    Algorithm <https://doi.org/10.1111/j.2517-6161.1977.tb01600.x>`_, 1977.
  """
  check_counts(num_steps=num_steps, at_least=0)
  size = _check_likelihoods(log_likelihoods)
  if not log_likelihoods.size:
    raise ValueError("log_likelihoods: of no example, at least one is needed.")
  possible, is_impossible = _possible(log_likelihoods)
  is_impossible &= ~is_impossible.all(0)
  best = jnp.where(is_impossible, LOG_ZERO, possible).max(0)
  shift = jax.lax.stop_gradient(best)
  likelihoods = jnp.where(is_impossible, 0, jnp.exp(possible - shift))

  def step(weights: Array, _: None) -> tuple[Array, None]:
    ratios = likelihoods / (weights[:, None] * likelihoods).sum(0)
    return weights * ratios.mean(1), None

  start = jnp.full(size, 1 / size, likelihoods.dtype)
  weights, _ = jax.lax.scan(step, start, length=num_steps)
  return weights / weights.sum()


def _possible(log_likelihoods: Array) -> tuple[Array, Array]:
  """Returns the array with -inf replaced by 0, and the mask of the -inf."""
  is_impossible = jnp.isneginf(log_likelihoods)
  return jnp.where(is_impossible, 0, wide(log_likelihoods)), is_impossible


def _check_likelihoods(log_likelihoods: Array) -> int:
  """Checks the array, which may hold -inf; returns the number of models."""
  if jnp.ndim(log_likelihoods) != 2:
    raise ValueError(
      f"log_likelihoods of shape {jnp.shape(log_likelihoods)}: must be "
      "[models, n], one of each example."
    )
  if isinstance(log_likelihoods, jax.core.Tracer):
    return check_stack(log_likelihoods)
  with jax.ensure_compile_time_eval():
    return check_stack(_possible(log_likelihoods)[0])


def _column(weights: ArrayLike | None, logits: Array) -> Array:
  """Returns weights that broadcast against logits `[models, ..., classes]`."""
  if jnp.ndim(logits) < 2:
    raise ValueError(
      f"logits of shape {jnp.shape(logits)}: must be [models, ..., classes]."
    )
  if isinstance(logits, jax.core.Tracer):
    return _broadcast(weights, check_stack(logits), logits)
  return _broadcast(weights, check_stack(largest_logits(logits)), logits)


def _broadcast(weights: ArrayLike | None, size: int, stack: Array) -> Array:
  return normalized_weights(weights, size).reshape(-1, *[1] * (stack.ndim - 1))
