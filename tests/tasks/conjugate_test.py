"""Conjugate pairs against scipy's quadrature of prior and likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from metajax.tasks.conjugate import coin_flips, normal_gamma, normal_means
from metajax.types import Batch

INPUTS = np.zeros((1, 1))


def _support(values):
  y = np.array(values, float)[:, None]
  return Batch(np.zeros_like(y), y)


def test_coin_is_the_integral_over_its_bias():
  flips = [1, 1, 0, 1]
  prior = stats.beta(0.7, 2.0)

  def integral(more):
    return integrate.quad(
      lambda p: prior.pdf(p) * p ** (3 + more) * (1 - p), 0, 1
    )[0]

  found = coin_flips(heads=0.7, tails=2.0).posterior(_support(flips), INPUTS)
  np.testing.assert_allclose(found.mean, integral(1) / integral(0), rtol=1e-6)


def test_normal_mean_is_the_integral_over_it():
  seen, y = [0.3, 2.0, -0.4], 0.9
  prior = stats.norm(0.5, 1.2)

  def integral(values):
    return integrate.quad(
      lambda mu: prior.pdf(mu) * stats.norm(mu, 0.6).pdf(values).prod(), -9, 9
    )[0]

  tasks = normal_means(mean=0.5, scale=1.2, noise=0.6)
  found = tasks.posterior(_support(seen), INPUTS).log_prob(np.array([[y]]))
  known = np.log(integral([*seen, y]) / integral(seen))
  np.testing.assert_allclose(found, known, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seen", [[], [1.4], [0.3, 2.0, -0.4]])
def test_normal_gamma_is_the_integral_over_mean_and_precision(seen):
  y = 0.9
  mu, t = np.linspace(-20, 21, 1001)[:, None], np.linspace(1e-3, 20, 1001)[None]

  def integral(values):
    density = stats.gamma.pdf(t, 3.0, scale=1 / 1.5)
    density = density * stats.norm.pdf(mu, 0.5, (0.7 * t) ** -0.5)
    for value in values:
      density = density * stats.norm.pdf(value, mu, t**-0.5)
    return integrate.simpson(integrate.simpson(density, t[0]), mu[:, 0])

  tasks = normal_gamma(mean=0.5, count=0.7, shape=3.0, rate=1.5)
  found = tasks.posterior(_support(seen), INPUTS).log_prob(np.array([[y]]))
  known = np.log(integral([*seen, y]) / (integral(seen) if seen else 1))
  np.testing.assert_allclose(found, known, atol=2e-4)


def test_normal_gamma_is_accurate_far_from_zero():
  """Squared distances are from the mean of the numbers, not from zero."""
  seen = np.array([1000.0, 1000.5, 999.0, 1000.25])
  found = normal_gamma(mean=1000.0).posterior(_support(seen), INPUTS)
  near = normal_gamma(mean=0.0).posterior(_support(seen - 1000), INPUTS)
  np.testing.assert_allclose(found.scale, near.scale, rtol=1e-5)
  np.testing.assert_allclose(found.mean - 1000, near.mean, atol=1e-4)


FAMILIES = {
  "coin": coin_flips((0, 6), 2, heads=2.0, tails=0.5),
  "mean": normal_means((0, 6), 2, mean=1.0, scale=2.0, noise=0.5),
  "gamma": normal_gamma((0, 6), 2, mean=1.0, count=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_targets_have_the_posterior_that_is_claimed(name):
  """Scores by the posterior have the mean and spread that it gives them."""
  tasks = FAMILIES[name]

  def surplus(key):
    support, query = tasks(key)
    found = tasks.posterior(support, query.inputs)
    rank = found.cdf(query.targets)[0, 0]
    away = (query.targets - found.mean)[0, 0]
    return rank, away, found.variance[0, 0]

  keys = jax.random.split(jax.random.key(0), 2000)
  ranks, away, variance = jax.jit(jax.vmap(surplus))(keys)
  if name == "coin":
    # The sum of the variances, which is that of independent errors.
    error = np.asarray(variance).sum() ** 0.5
    assert abs(away.sum()) < 4.5 * error
    square = np.asarray(away) ** 2 - np.asarray(variance)
    assert abs(square.mean()) < 4.5 * square.std() * 2000**-0.5
  else:
    assert stats.kstest(ranks, "uniform").pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_nothing(name):
  tasks = FAMILIES[name]
  support, _ = tasks(jax.random.key(5))
  assert 0 < support.mask.sum() < 6
  real = jax.tree.map(lambda x: x[support.mask], support._replace(mask=None))
  wrong = jnp.where(support.mask[:, None], support.targets, 1e4)
  for a, b in zip(
    tasks.posterior(support._replace(targets=wrong), INPUTS),
    tasks.posterior(real, INPUTS),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_long_sequences_tell_the_hyper_parameters(name):
  """The posterior of 20,000 observations is close to `given`."""
  make = {"coin": coin_flips, "mean": normal_means, "gamma": normal_gamma}
  tasks = make[name](20_000, 3)
  hyper = tasks.draw(jax.random.key(4))
  support, query = tasks.sample(jax.random.key(5), hyper)
  assert query.targets.shape == query.inputs.shape == (3, 1)
  found = tasks.posterior(support, query.inputs)
  known = tasks.given(hyper, support, query.inputs)
  np.testing.assert_allclose(
    found.mean, known.mean, atol=4.5 * float(known.variance[0, 0] / 2e4) ** 0.5
  )
  np.testing.assert_allclose(found.variance, known.variance, rtol=0.05)


@pytest.mark.parametrize(
  ("make", "name"),
  [
    (coin_flips, "heads"),
    (coin_flips, "tails"),
    (normal_means, "scale"),
    (normal_means, "noise"),
    (normal_gamma, "count"),
    (normal_gamma, "rate"),
  ],
)
def test_bad_arguments_are_refused(make, name):
  with pytest.raises(ValueError, match=f"{name}=0: must be above 0"):
    make(**{name: 0})


def test_too_small_a_shape_is_refused():
  with pytest.raises(ValueError, match="shape=0.4: must be 0.5 or more"):
    normal_gamma(shape=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["posterior", "given"])
@pytest.mark.parametrize(
  "tasks",
  [coin_flips(heads=0.01, tails=0.01), normal_gamma(count=0.1, shape=0.5)],
  ids=["coin", "gamma"],
)
def test_scores_are_finite_at_the_ends_of_the_priors(tasks, likelihood):
  """Such a coin's bias is often 0 or 1 in float32."""

  def score(key):
    hyper = tasks.draw(key)
    support, query = tasks.sample(key, hyper)
    if likelihood == "given":
      found = tasks.given(hyper, support, query.inputs)
    else:
      found = tasks.posterior(support, query.inputs)
    return found.log_prob(query.targets)

  scores = jax.jit(jax.vmap(score))(jax.random.split(jax.random.key(6), 2000))
  assert np.isfinite(scores).all()
