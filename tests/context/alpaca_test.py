"""ALPaCA is a Gaussian process with the kernel of its features."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import alpaca
from metajax.types import Batch

RNG = jax.random.key(0)
FEATURES, OUTPUTS = 4, 2


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _features(x):
  return np.concatenate([np.ones_like(x), x, np.sin(x), x**2], axis=1)


MODEL = SimpleNamespace(
  init=lambda rng, x: {},
  apply=lambda params, x: jnp.concatenate(
    [jnp.ones_like(x), x, jnp.sin(x), x**2], axis=1
  ),
)


@pytest.mark.slow
def test_prediction_is_that_of_the_gaussian_process():
  """k(x, x') = f(x)' P0^-1 f(x'), in units of the noise's variance."""
  learner = alpaca(MODEL, num_outputs=OUTPUTS)
  draw = np.random.default_rng(0)
  x, y = draw.normal(size=(5, 1)), draw.normal(size=(5, OUTPUTS))
  at = draw.normal(size=(3, 1))
  params = jax.tree.map(
    lambda z: draw.normal(0, 0.5, z.shape), learner.init(RNG, x)
  )
  found = learner.predict(learner.adapt(params, Batch(x, y), RNG), at)

  factor = np.tril(params["lower"], -1) + np.diag(
    np.exp(params["log_diagonal"])
  )
  prior = np.linalg.inv(factor @ factor.T)
  f, g = _features(x), _features(at)
  gain = g @ prior @ f.T @ np.linalg.inv(f @ prior @ f.T + np.eye(5))
  mean = g @ params["mean"] + gain @ (y - f @ params["mean"])
  variance = np.diagonal(g @ prior @ g.T - gain @ f @ prior @ g.T) + 1
  scale = np.sqrt(variance)[:, None] * np.exp(params["log_noise"])
  np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
  np.testing.assert_allclose(found.scale, scale, rtol=1e-7)


def test_large_inputs_give_numbers_in_float32():
  """P has 1e8 of the features beside 1 of its prior, and no factor."""
  with jax.enable_x64(False):
    learner = alpaca(width=16)
    x = 1e5 * jax.random.normal(RNG, (9, 1))
    params = learner.init(RNG, x)
    support = Batch(x, x / 1e5)
    found = learner.predict(learner.adapt(params, support, RNG), x)
    assert np.isfinite(found.mean).all()
    # Those of the prior's mean are about 1e4.
    np.testing.assert_allclose(found.mean, support.targets, atol=0.3)
