"""Distributions of actions, compared with scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.models.mlp import MLP
from metajax.policies.distributions import Categorical, DiagonalGaussian
from metajax.policies.policy import categorical_policy, gaussian_policy
from metajax.tasks.playable import Continuous, Discrete

LOGITS = np.array([[0.3, -1.2, 2.0], [0.0, 0.5, -0.5]])
OTHER = np.array([[1.0, 0.0, -1.0], [0.2, 0.2, 0.2]])
MEAN = np.array([[0.4, -1.0], [2.0, 0.1]])
LOG_SCALE = np.array([[-0.5, 0.3], [0.0, -2.0]])


def _softmax(logits):
  p = np.exp(logits)
  return p / p.sum(-1, keepdims=True)


def test_categorical_equals_scipy():
  p, q = _softmax(LOGITS), _softmax(OTHER)
  found, other = Categorical(jnp.array(LOGITS)), Categorical(jnp.array(OTHER))
  actions = np.array([2, 1])
  np.testing.assert_allclose(
    found.log_prob(actions), np.log(p[[0, 1], actions]), rtol=1e-5
  )
  entropy = scipy.stats.entropy(p, axis=-1)
  np.testing.assert_allclose(found.entropy(), entropy, rtol=1e-5)
  divergence = scipy.stats.entropy(p, q, axis=-1)
  np.testing.assert_allclose(found.kl(other), divergence, rtol=1e-5)


def test_gaussian_equals_scipy():
  found = DiagonalGaussian(jnp.array(MEAN), jnp.array(LOG_SCALE))
  normal = scipy.stats.norm(MEAN, np.exp(LOG_SCALE))
  actions = np.array([[0.0, 0.5], [1.0, 0.2]])
  np.testing.assert_allclose(
    found.log_prob(actions), normal.logpdf(actions).sum(-1), rtol=1e-5
  )
  np.testing.assert_allclose(
    found.entropy(), normal.entropy().sum(-1), rtol=1e-5
  )


@pytest.mark.slow
def test_gaussian_divergence_equals_an_integral():
  """Of the log-ratio under the first, on a fine grid, in each direction."""
  found = DiagonalGaussian(jnp.array(MEAN), jnp.array(LOG_SCALE))
  other = DiagonalGaussian(jnp.array(MEAN[::-1]), jnp.array(LOG_SCALE[::-1]))
  p = scipy.stats.norm(MEAN, np.exp(LOG_SCALE))
  q = scipy.stats.norm(MEAN[::-1], np.exp(LOG_SCALE[::-1]))
  z = np.linspace(-10, 10, 20_001)[:, None, None]
  x = MEAN + np.exp(LOG_SCALE) * z
  weight = scipy.stats.norm.pdf(z) * (z[1] - z[0])
  each = (weight * (p.logpdf(x) - q.logpdf(x))).sum(0)
  np.testing.assert_allclose(found.kl(other), each.sum(-1), rtol=1e-4)


@pytest.mark.slow
def test_samples_have_the_moments_of_the_distribution():
  many = 20_000
  keys = jax.random.split(jax.random.key(0), many)
  gaussian = DiagonalGaussian(jnp.array(MEAN), jnp.array(LOG_SCALE))
  drawn = np.asarray(jax.vmap(gaussian.sample)(keys))
  error = 4 * np.exp(LOG_SCALE) / np.sqrt(many)
  assert (np.abs(drawn.mean(0) - MEAN) < error).all()
  np.testing.assert_allclose(drawn.std(0), np.exp(LOG_SCALE), rtol=0.03)
  drawn = np.asarray(jax.vmap(Categorical(jnp.array(LOGITS)).sample)(keys))
  share = (drawn[..., None] == np.arange(3)).mean(0)
  np.testing.assert_allclose(share, _softmax(LOGITS), atol=0.015)


@pytest.mark.slow
def test_excluded_action_has_no_probability_and_finite_gradients():
  def total(logits):
    found = Categorical(logits)
    return found.entropy() + found.kl(Categorical(jnp.zeros(3)))

  logits = jnp.array([0.0, 1.0, -jnp.inf])
  # Entropy and divergence from the uniform one add up to log 3.
  np.testing.assert_allclose(total(logits), np.log(3), rtol=1e-6)
  gradient = jax.grad(total)(logits)
  np.testing.assert_allclose(gradient, np.zeros(3), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale, outputs", [("free", 2), ("state", 4)])
def test_scale_is_a_parameter_or_depends_on_the_observation(scale, outputs):
  model = MLP(outputs, (4,))
  policy = gaussian_policy(
    model, Continuous(2), scale=scale, initial_scale=0.5, smallest_scale=0.1
  )
  seen = jnp.array([[1.0, 2.0], [-3.0, 0.5]])
  params = policy.init(jax.random.key(0), seen)
  found = policy.apply(params, seen)
  assert found.mean.shape == found.log_scale.shape == (2, 2)
  same = np.allclose(found.log_scale[0], found.log_scale[1])
  assert same == (scale == "free")
  if scale == "free":
    np.testing.assert_allclose(found.log_scale, np.log(0.5), rtol=1e-6)
    params["log_scale"] = jnp.full(2, -50.0)
    least = policy.apply(params, seen).log_scale
    np.testing.assert_allclose(least, np.log(0.1), rtol=1e-6)


@pytest.mark.parametrize(
  "build, message",
  [
    (
      lambda: categorical_policy(MLP(2), Continuous(2)),
      r"actions=Continuous\(size=2\): .* use gaussian_policy\.",
    ),
    (
      lambda: gaussian_policy(MLP(2), Discrete(2)),
      r"actions=Discrete\(number=2\): .* use categorical_policy\.",
    ),
    (
      lambda: gaussian_policy(MLP(2), Continuous(2), scale="none"),
      "scale='none': must be one of",
    ),
    (
      lambda: gaussian_policy(MLP(2), Continuous(2), initial_scale=0.0),
      "initial_scale=0.0: must be",
    ),
    (
      lambda: gaussian_policy(MLP(2), Continuous(2), initial_scale=np.inf),
      "initial_scale=inf: must be .* below inf",
    ),
  ],
)
def test_policy_that_cannot_be_is_refused(build, message):
  with pytest.raises(ValueError, match=message):
    build()


@pytest.mark.slow
@pytest.mark.parametrize(
  "policy",
  [
    categorical_policy(MLP(4, (3,)), Discrete(3)),
    gaussian_policy(MLP(4, (3,)), Continuous(3)),
    gaussian_policy(MLP(3, (3,)), Continuous(3), scale="state"),
  ],
)
def test_model_with_another_number_of_outputs_is_refused(policy):
  with pytest.raises(ValueError, match=r"model: its outputs .* build it with"):
    policy.init(jax.random.key(0), jnp.zeros((1, 2)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gaussian_of_half_precision_is_computed_in_float32(dtype):
  # The squares of these overflow in float16.
  arrays = [jnp.asarray(x, dtype) for x in (300 * MEAN, LOG_SCALE, 0 * MEAN)]
  mean, log_scale, actions = [np.asarray(x, np.float64) for x in arrays]
  found = DiagonalGaussian(*arrays[:2])
  normal = scipy.stats.norm(mean, np.exp(log_scale))
  for ours, theirs in (
    (found.log_prob(arrays[2]), normal.logpdf(actions).sum(-1)),
    (found.entropy(), normal.entropy().sum(-1)),
    (
      found.kl(DiagonalGaussian(arrays[2], arrays[1])),
      0.5 * np.square(mean / np.exp(log_scale)).sum(-1),
    ),
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
