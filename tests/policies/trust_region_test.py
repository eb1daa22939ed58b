"""The step of TRPO, compared with dense linear algebra in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.policies.distributions import Categorical
from metajax.policies.trust_region import (
  TrustRegion,
  check_trust_region,
  trust_region_step,
)

STATES, ACTIONS = 4, 3
DRAW = np.random.default_rng(0).normal
FEATURES = DRAW(size=(STATES, 5))
REWARDS = DRAW(size=(STATES, ACTIONS))
THETA = DRAW(size=(5, ACTIONS))


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _policy(theta):
  return Categorical(jnp.asarray(FEATURES) @ theta)


def _outer(theta):
  """Minus the expected reward of a bandit with features, and the divergence."""
  probabilities = jnp.exp(_policy(theta)._log())
  divergence = _policy(jnp.asarray(THETA)).kl(_policy(theta)).mean()
  return -(probabilities * REWARDS).sum(-1).mean(), divergence, {}


def _step(region, scale=None):
  # The numbers are arguments, so that the tests share a program.
  compiled = _compiled(region.cg_steps, region.backtracks, scale is None)
  return compiled(region.max_kl, region.damping, scale or 1.0)


@functools.cache
def _compiled(cg_steps, backtracks, own):
  """With the step's own matrix, or with that of `_fisher` times a factor."""

  def step(max_kl, damping, scale):
    region = TrustRegion(max_kl, cg_steps, damping, backtracks)
    matrix = jnp.asarray(_fisher())
    fisher = lambda v: scale * (matrix @ v.ravel()).reshape(v.shape)  # noqa: E731
    return trust_region_step(
      _outer, jnp.asarray(THETA), region, fisher=None if own else fisher
    )

  return jax.jit(step)


def _fisher():
  """E score score', from the closed form of a softmax policy, [n, n]."""
  p = np.exp(FEATURES @ THETA)
  p /= p.sum(1, keepdims=True)
  each = [
    np.einsum("i,j,ab->iajb", x, x, np.diag(q) - np.outer(q, q))
    for x, q in zip(FEATURES, p, strict=True)
  ]
  return np.mean(each, axis=0).reshape(THETA.size, THETA.size)


def test_step_is_the_scaled_natural_gradient():
  """With the Fisher matrix that it finds from the divergence itself."""
  region = TrustRegion(max_kl=1e-6, cg_steps=THETA.size, damping=1e-3)
  new, metrics = _step(region)
  gradient = jax.jit(jax.grad(lambda t: _outer(t)[0]))(THETA).ravel()
  matrix = _fisher() + 1e-3 * np.eye(THETA.size)
  direction = np.linalg.solve(matrix, gradient)
  length = np.sqrt(2e-6 / (gradient @ direction))
  step = (np.asarray(new) - THETA).ravel() / float(metrics["step_length"])
  np.testing.assert_allclose(step, -length * direction, rtol=1e-5)
  # The damping makes the step shorter than the bound allows.
  assert metrics["step_length"] == 1.0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_equations_that_are_solved_early_give_a_step(size):
  """More conjugate gradients than unknowns divided 0 by 0 in float32."""

  @jax.jit
  @jax.vmap
  def step(root, slope):
    def outer(x):
      return slope @ x, jnp.square(root @ x).sum() / 2, {}

    return trust_region_step(outer, jnp.zeros_like(slope), TrustRegion())

  draw = np.random.default_rng(size).normal
  roots = draw(size=(200, size, size)).astype(np.float32)
  slopes = 1e-3 * draw(size=(200, size)).astype(np.float32)
  new, metrics = step(roots, slopes)
  assert (metrics["step_length"] == 1).all()
  damped = np.float64(roots.swapaxes(1, 2) @ roots) + 0.01 * np.eye(size)
  direction = np.linalg.solve(damped, np.float64(slopes)[..., None])[..., 0]
  lengths = np.sqrt(0.02 / (slopes * direction).sum(1))
  np.testing.assert_allclose(new, -lengths[:, None] * direction, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("max_kl", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_line_search_keeps_the_bound_and_lowers_the_loss(max_kl, scale):
  """Also where the metric is wrong by a factor, and the step too long."""
  region = TrustRegion(max_kl=max_kl, damping=1e-6, backtracks=60)
  new, metrics = _step(region, scale)
  loss, divergence, _ = _outer(new)
  assert 0 < divergence <= max_kl
  assert loss < _outer(THETA)[0]
  np.testing.assert_allclose(metrics["kl"], divergence, rtol=1e-9)
  assert (metrics["step_length"] < 0.9) == (scale < 1)


@pytest.mark.slow
def test_without_an_allowed_step_the_parameters_stay():
  """A metric that is far too small makes the only step far too long."""
  region = TrustRegion(max_kl=0.01, damping=1e-6, backtracks=1)
  new, metrics = _step(region, 1e-4)
  np.testing.assert_array_equal(new, THETA)
  assert metrics["kl"] == metrics["step_length"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("scale", [-1.0, -1e-3, 1e-300])
def test_a_metric_without_positive_curvature_does_no_harm(scale):
  """Conjugate gradients do not check it; the line search refuses its step."""
  region = TrustRegion(max_kl=0.01, damping=0.0, backtracks=1)
  new, metrics = _step(region, scale)
  loss, divergence, _ = _outer(new)
  assert loss <= _outer(THETA)[0] and divergence <= 0.01
  assert np.isfinite([metrics["kl"], metrics["step_length"]]).all()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"max_kl": 0.0}, "max_kl=0.0: must be"),
    ({"cg_steps": 0}, "cg_steps=0: must be"),
    ({"damping": -1.0}, "damping=-1.0: must be"),
    ({"backtracks": 0}, "backtracks=0: must be"),
    ({"shrink": 1.0}, "shrink=1.0: must be"),
  ],
)
def test_numbers_out_of_range_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    check_trust_region(TrustRegion()._replace(**changes))
