"""Linear regression against scikit-learn, closed forms and its own prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from metajax.tasks.linear_regression import linear_regression
from metajax.types import Batch


def _data(n, d):
  rng = np.random.default_rng(n)
  x, w = rng.normal(size=(n, d)), rng.normal(size=(d, 1))
  return x, x @ w + 0.3 * rng.normal(size=(n, 1)), rng.normal(size=(5, d))


@pytest.mark.parametrize("n", [2, 4, 9])
def test_posterior_is_the_closed_form(n):
  """Of ridge regression, and of a Gaussian process of dot products."""
  x, y, asked = _data(n, 4)
  tasks = linear_regression(4, noise=0.3, weight_scale=1.5)
  with jax.enable_x64(True):
    found = jax.jit(tasks.posterior)(
      Batch(jnp.asarray(x), jnp.asarray(y)), jnp.asarray(asked)
    )
  ridge = Ridge((0.3 / 1.5) ** 2, fit_intercept=False).fit(x, y[:, 0])
  np.testing.assert_allclose(found.mean[:, 0], ridge.predict(asked), rtol=1e-8)
  precision = x.T @ x / 0.3**2 + np.eye(4) / 1.5**2
  variance = np.diag(asked @ np.linalg.inv(precision) @ asked.T) + 0.3**2
  np.testing.assert_allclose(found.variance[:, 0], variance, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4, 9])
def test_without_noise_it_is_least_squares_of_smallest_norm(n):
  x, _, asked = _data(n, 4)
  y = x @ np.array([[1.0], [-2], [0.5], [3]])
  tasks = linear_regression(4)
  found = tasks.posterior(Batch(x, y), asked)
  solution = np.linalg.lstsq(x, y)[0]
  np.testing.assert_allclose(found.mean, asked @ solution, rtol=2e-4, atol=1e-5)
  # What the rows of x do not span is as in the prior.
  _, _, vt = np.linalg.svd(x)
  variance = (asked @ vt[min(n, 4) :].T) ** 2
  variance = np.maximum(variance.sum(-1, keepdims=True), 1e-8)
  np.testing.assert_allclose(found.variance, variance, rtol=1e-3)
  assert np.isfinite(found.log_prob(asked @ solution)).all()


def test_padding_changes_nothing():
  x, y, asked = _data(9, 4)
  mask = np.arange(9) % 2 == 0
  tasks = linear_regression(4, noise=0.3)
  real = tasks.posterior(Batch(x[mask], y[mask]), asked)
  padded = tasks.posterior(
    Batch(np.where(mask[:, None], x, 9e3), y, jnp.asarray(mask)), asked
  )
  for a, b in zip(real, padded, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_targets_have_the_posterior_that_is_claimed():
  """Their cdf is uniform, from a support that leaves weights open."""
  tasks = linear_regression(5, shots=(0, 8), query_shots=1, noise=0.5)

  def rank(key):
    support, query = tasks(key)
    return tasks.posterior(support, query.inputs).cdf(query.targets)[0, 0]

  ranks = jax.jit(jax.vmap(rank))(jax.random.split(jax.random.key(0), 1000))
  assert stats.kstest(ranks, "uniform").pvalue > 0.01


@pytest.mark.slow
def test_targets_are_those_of_the_weights():
  tasks = linear_regression(3, shots=4, query_shots=2, weight_scale=2.0)
  weights = tasks.draw(jax.random.key(1))
  support, query = tasks.sample(jax.random.key(2), weights)
  assert support.mask is None
  for batch in (support, query):
    np.testing.assert_allclose(
      batch.targets, batch.inputs @ weights, rtol=1e-4, atol=1e-5
    )
  found = tasks.given(weights, support, query.inputs)
  np.testing.assert_allclose(found.mean, query.targets, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.scale, 2e-4, rtol=1e-5)
  drawn = jax.vmap(tasks.draw)(jax.random.split(jax.random.key(3), 2000))
  assert stats.kstest(drawn.ravel() / 2, "norm").pvalue > 0.01


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"num_inputs": 0}, "num_inputs=0: must be 1 or more"),
    ({"noise": -1}, "noise=-1: must be 0 or more"),
    ({"weight_scale": 0}, "weight_scale=0: must be above 0"),
  ],
)
def test_bad_arguments_are_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    linear_regression(**flags)


@pytest.mark.parametrize("least", [1e-2, 1e-3, 1e-4])
def test_without_noise_rounding_is_in_the_deviation(least):
  """Float32's rounding is amplified by the inverse of a singular value."""
  rng = np.random.default_rng(0)
  left, right = (np.linalg.qr(rng.normal(size=(20, 20)))[0] for _ in range(2))
  x = np.float32(left * np.append(np.linspace(1, 9, 19), least) @ right)
  weights = rng.normal(size=(20, 1))
  asked = rng.normal(size=(100, 20)).astype(np.float32)
  y = np.float32(x @ weights)
  found = jax.jit(linear_regression(20).posterior)(Batch(x, y), asked)
  away = np.abs(found.mean - asked @ weights) / found.scale
  assert away.max() < 4
  # And no more than that: targets rounded to 1 part in 2^23 say so much.
  known = 20**0.5 * 2**-23 / least * np.abs(asked @ right[-1])
  assert (found.scale[:, 0] < 1.5 * np.maximum(known, 2e-4)).all()
