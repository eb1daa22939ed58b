"""Pools of predictions, against numpy float64 and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from metajax.aggregation import (
  Gaussian,
  average_probabilities,
  log_pool,
  mixture_moments,
  posterior_weights,
  stacking_weights,
  weighted_vote,
)

LOGITS = 3 * np.random.default_rng(0).normal(size=(4, 6, 5))
WEIGHTS = np.array([1.0, 0.0, 2.0, 5.0])
POOLS = [average_probabilities, log_pool, weighted_vote]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_average_is_of_probabilities_not_of_logits(weights):
  probabilities = scipy.special.softmax(LOGITS, axis=-1)
  expected = np.average(probabilities, axis=0, weights=weights)
  found = jnp.exp(average_probabilities(jnp.asarray(LOGITS), weights))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_log_pool_is_the_normalised_geometric_mean(weights):
  log_p = scipy.special.log_softmax(LOGITS, axis=-1)
  mean = np.exp(np.average(log_p, axis=0, weights=weights))
  expected = mean / mean.sum(-1, keepdims=True)
  found = jnp.exp(log_pool(jnp.asarray(LOGITS), weights))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_votes_are_counted(weights):
  shares = np.ones(4) / 4 if weights is None else weights / weights.sum()
  expected = np.zeros((6, 5))
  for model, share in zip(LOGITS, shares, strict=True):
    for example, row in enumerate(model):
      expected[example, np.argmax(row)] += share
  np.testing.assert_allclose(
    weighted_vote(jnp.asarray(LOGITS), weights), expected, rtol=1e-6
  )


@pytest.mark.parametrize("pool", POOLS)
def test_order_of_the_models_and_scale_of_the_weights_do_not_matter(pool):
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(
    pool(jnp.asarray(LOGITS)[order], 9 * WEIGHTS[order]),
    pool(jnp.asarray(LOGITS), WEIGHTS),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("pool", [average_probabilities, log_pool])
def test_equal_models_are_their_own_pool(pool):
  equal = jnp.broadcast_to(LOGITS[0], LOGITS.shape)
  np.testing.assert_allclose(
    pool(equal, WEIGHTS),
    scipy.special.log_softmax(LOGITS[0], axis=-1),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize("pool", [average_probabilities, log_pool])
def test_huge_logits_do_not_overflow(pool):
  logits = jnp.array([[1e4, 0.0], [1e4, 0.0]])
  np.testing.assert_allclose(pool(logits), [0.0, -1e4], rtol=1e-6)


def test_moments_are_those_of_samples_of_the_mixture():
  draw = np.random.default_rng(1)
  means = np.array([[0.0, 1.0], [2.0, 1.0], [-1.0, 5.0]])
  variances = np.array([[1.0, 0.1], [0.25, 0.0], [4.0, 1.0]])
  weights = np.array([0.5, 0.3, 0.2])
  mean, variance = mixture_moments(
    Gaussian(jnp.asarray(means), jnp.asarray(variances)), 10 * weights
  )
  n = 400_000
  member = draw.choice(3, n, p=weights)
  samples = draw.normal(means[member], np.sqrt(variances[member]))
  # 5 standard errors of a mean, and of a variance by the fourth moment.
  error = samples.std(0) / np.sqrt(n)
  assert (np.abs(mean - samples.mean(0)) < 5 * error).all()
  squares = np.square(samples - samples.mean(0))
  error = squares.std(0) / np.sqrt(n)
  assert (np.abs(variance - samples.var(0)) < 5 * error).all()


def test_moments_by_hand():
  """Two points: their mean, and the variance of a fair coin between them."""
  mean, variance = mixture_moments(
    Gaussian(jnp.array([1.0, 5.0]), jnp.array([0.0, 2.0]))
  )
  assert (mean, variance) == (3.0, 4.0 + 1.0)


def test_posterior_is_bayes_rule():
  likelihoods = np.array([[0.5, 0.2, 0.9], [0.4, 0.6, 0.3]])
  found = posterior_weights(jnp.log(likelihoods), [1, 3])
  mass = np.array([1, 3]) * likelihoods.prod(axis=1)
  np.testing.assert_allclose(found, mass / mass.sum(), rtol=1e-5)


def test_posterior_of_a_prior_of_zero_stays_zero():
  found = posterior_weights(jnp.array([[-1.0], [-50.0]]), [0, 1])
  np.testing.assert_array_equal(found, [0, 1])


def _log_likelihoods(models=4, examples=200):
  draw = np.random.default_rng(2)
  return np.log(draw.uniform(0.01, 1, size=(models, examples)))


def test_stacking_finds_the_maximum_that_scipy_finds():
  log_p = _log_likelihoods()

  def objective(w):
    return -np.mean(scipy.special.logsumexp(log_p, axis=0, b=w[:, None]))

  best = scipy.optimize.minimize(
    objective,
    np.full(4, 0.25),
    bounds=[(0, 1)] * 4,
    constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    options={"ftol": 1e-12},
  )
  found = np.asarray(stacking_weights(jnp.asarray(log_p)))
  np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
  assert objective(np.float64(found)) < best.fun + 1e-6
  np.testing.assert_allclose(found, best.x, atol=1e-3)


def test_no_step_of_stacking_lowers_the_likelihood():
  log_p = jnp.asarray(_log_likelihoods())
  values = [
    jax.nn.logsumexp(
      log_p, axis=0, b=stacking_weights(log_p, n)[:, None]
    ).mean()
    for n in (0, 1, 2, 5, 20)
  ]
  assert (np.diff(values) > -1e-6).all()
  assert values[-1] > values[0] + 1e-4


def test_stacking_keeps_two_models_that_each_know_half():
  """Where Bayesian averaging takes one, by a hair."""
  log_p = jnp.log(jnp.array([[0.9, 0.1] * 50 + [0.9], [0.1, 0.9] * 50 + [0.1]]))
  np.testing.assert_allclose(stacking_weights(log_p), [0.5, 0.5], atol=0.02)
  np.testing.assert_allclose(posterior_weights(log_p), [0.9, 0.1], rtol=1e-3)


@pytest.mark.parametrize("pool", POOLS)
def test_predictions_that_are_none_are_named(pool):
  with pytest.raises(ValueError, match="model 1 is not finite"):
    pool(jnp.array([[0.0, 1.0], [0.0, jnp.nan]]))
  with pytest.raises(ValueError, match="must be finite and 0 or more"):
    pool(jnp.zeros((2, 3)), [1.0, -1.0])


def test_negative_steps_are_named():
  with pytest.raises(ValueError, match="num_steps=-1"):
    stacking_weights(jnp.zeros((2, 3)), -1)
