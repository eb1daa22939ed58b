"""The tanh of a Gaussian: its density by quadrature and by scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from metajax.off_policy import TanhGaussian

MEANS, SCALES = np.array([-0.8, 0.0, 1.3]), np.array([0.4, 0.9, 0.6])


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _law(mean, scale):
  return TanhGaussian(jnp.asarray(mean), jnp.log(jnp.asarray(scale)))


@pytest.mark.parametrize("mean, scale", list(zip(MEANS, SCALES, strict=True)))
def test_density_is_one_in_all_and_its_probabilities_are_known(
  mean, scale, float64
):
  """P(a < x) = P(u < atanh x), which scipy knows."""
  density = jax.jit(lambda a: jnp.exp(_law([mean], [scale]).log_prob(a[None])))
  for x in (-0.5, 0.2, 0.9):
    found, _ = scipy.integrate.quad(
      lambda a: float(density(jnp.asarray(a))), -1, x
    )
    known = scipy.stats.norm(mean, scale).cdf(np.arctanh(x))
    np.testing.assert_allclose(found, known, atol=1e-7)
  whole, _ = scipy.integrate.quad(
    lambda a: float(density(jnp.asarray(a))), -1, 1
  )
  np.testing.assert_allclose(whole, 1.0, atol=1e-5)


def test_density_of_a_vector_is_that_of_independent_numbers(float64):
  actions = np.random.default_rng(0).uniform(-0.95, 0.95, (20, 3))
  found = _law(MEANS, SCALES).log_prob(jnp.asarray(actions))
  normal = scipy.stats.norm(MEANS, SCALES).logpdf(np.arctanh(actions))
  known = (normal - np.log(1 - actions**2)).sum(-1)
  np.testing.assert_allclose(found, known, rtol=1e-10)


def test_samples_come_with_their_own_density(float64):
  law = _law(np.tile(MEANS, (2000, 1)), np.tile(SCALES, (2000, 1)))
  actions, log_probs = law.sample_with_log_prob(jax.random.key(0))
  np.testing.assert_allclose(log_probs, law.log_prob(actions), rtol=1e-7)
  np.testing.assert_array_equal(law.sample(jax.random.key(0)), actions)
  for i in range(3):
    known = scipy.stats.norm(MEANS[i], SCALES[i])
    assert (
      scipy.stats.kstest(np.arctanh(actions[:, i]), known.cdf).pvalue > 0.01
    )
  np.testing.assert_allclose(np.tanh(MEANS), law.mode[0])


def test_actions_at_the_bounds_are_finite_with_their_derivatives():
  """In float32 the tanh of 30 is 1, and log(1 - 1) would be infinite."""

  def found(mean):
    law = _law(mean, jnp.ones(2))
    action, log_prob = law.sample_with_log_prob(jax.random.key(0))
    return log_prob + law.log_prob(jnp.sign(action))

  value, slope = jax.value_and_grad(found)(jnp.array([30.0, -30.0]))
  assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_density_of_float32(dtype):
  # The bound of actions, 1 - 1e-6, is 1 in half precision.
  law = TanhGaussian(*(jnp.asarray(x, dtype) for x in (MEANS, np.log(SCALES))))
  actions = jnp.asarray([0.5, -0.9, 1.0], dtype)
  wide = TanhGaussian(*(x.astype(jnp.float32) for x in law))
  found = law.log_prob(actions)
  assert np.isfinite(found)
  np.testing.assert_allclose(
    found, wide.log_prob(actions.astype(jnp.float32)), rtol=1e-6
  )
