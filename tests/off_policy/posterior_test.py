"""The belief: a product of densities, whose order does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.models.mlp import MLP
from metajax.off_policy import (
  TanhGaussian,
  Transition,
  pearl_agent,
  product_of_gaussians,
)
from metajax.off_policy.posterior import factors_of
from metajax.policies import DiagonalGaussian
from metajax.tasks.playable import Continuous, Discrete

LATENT, STEPS = 2, 7


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _factors(seed=0):
  draw = np.random.default_rng(seed)
  return DiagonalGaussian(
    draw.normal(size=(STEPS, LATENT)), draw.normal(-0.3, 0.4, (STEPS, LATENT))
  )


def _moments(factors):
  """Mean and deviation of the normalised product of densities, on a grid."""
  z = np.linspace(-6, 6, 40_001)
  found = []
  for mean, log_scale in zip(*map(np.transpose, factors), strict=True):
    log = scipy.stats.norm(0, 1).logpdf(z)
    for m, s in zip(mean, log_scale, strict=True):
      log = log + scipy.stats.norm(m, np.exp(s)).logpdf(z)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    centre = (weight * z).sum()
    found.append((centre, np.sqrt((weight * (z - centre) ** 2).sum())))
  return np.transpose(found)


def test_product_is_that_of_the_densities_with_the_prior(float64):
  mean, scale = _moments(_factors())
  found = product_of_gaussians(_factors())
  np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
  np.testing.assert_allclose(np.exp(found.log_scale), scale, rtol=1e-6)


def test_masked_factors_are_left_out_whatever_they_are(float64):
  mask = np.arange(STEPS) % 3 > 0
  some = jax.tree.map(lambda x: x[mask], _factors())
  mean, log_scale = _factors()
  mean[~mask], log_scale[~mask] = np.inf, -np.inf
  whole = DiagonalGaussian(mean, log_scale)
  found = product_of_gaussians(whole, mask)
  known = product_of_gaussians(some)
  np.testing.assert_allclose(found.mean, known.mean, rtol=1e-12)
  np.testing.assert_allclose(found.log_scale, known.log_scale, rtol=1e-12)
  slopes = jax.grad(lambda *x: sum(map(jnp.sum, product_of_gaussians(*x))))
  for by, expected in zip(slopes(whole, mask), slopes(some), strict=True):
    np.testing.assert_allclose(by[mask], expected, rtol=1e-12)
    np.testing.assert_array_equal(by[~mask], 0)
  nothing = product_of_gaussians(_factors(), np.zeros(STEPS, bool))
  np.testing.assert_array_equal(nothing.mean, 0)
  np.testing.assert_array_equal(nothing.log_scale, 0)


def test_variance_of_a_factor_is_a_softplus_with_a_lower_bound(float64):
  raw = np.array([[0.3, -1.0, 2.0, -100.0]])
  found = factors_of(jnp.asarray(raw))
  np.testing.assert_array_equal(found.mean, raw[:, :2])
  np.testing.assert_allclose(
    np.exp(2 * found.log_scale), [[np.log1p(np.exp(2.0)), 1e-7]]
  )


def _steps(seed, num=STEPS):
  draw = np.random.default_rng(seed).normal
  return Transition(
    draw(size=(num, 3)),
    draw(size=(num, 2)),
    draw(size=num),
    draw(size=(num, 3)),
    np.zeros(num, bool),
  )


def _agent(encoder=4, actor=4, critic=1):
  models = [MLP(n, (5,)) for n in (encoder, actor, critic)]
  return pearl_agent(*models, Continuous(2), latent=LATENT)


def test_belief_does_not_depend_on_the_order_of_transitions(float64):
  agent, steps = _agent(), _steps(0)
  params = agent.init(jax.random.key(0), jnp.zeros(3))
  order = np.random.default_rng(1).permutation(STEPS)
  found = agent.posterior(params, steps, None)
  other = agent.posterior(params, jax.tree.map(lambda x: x[order], steps), None)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), found, other
  )
  # But on each number of each of them.
  slopes = jax.jacobian(
    lambda seen: agent.posterior(params, steps._replace(**seen), None).mean
  )({k: v for k, v in steps._asdict().items() if k != "ended"})
  for slope in slopes.values():
    assert np.all(np.abs(slope).max(0) > 0)


def test_belief_of_an_agent_is_the_product_of_its_encoder_s_factors(float64):
  agent, steps = _agent(), _steps(0)
  params = agent.init(jax.random.key(0), jnp.zeros(3))
  precision, weighted = np.ones(LATENT), np.zeros(LATENT)
  for n in range(STEPS):
    c = [steps.observation[n], steps.action[n], [steps.reward[n]]]
    c = np.concatenate([*c, steps.next_observation[n]])
    layers = params["encoder"]["params"]
    x = c @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
    x = np.maximum(x, 0) @ layers["Dense_1"]["kernel"]
    mean, raw = np.split(x + layers["Dense_1"]["bias"], 2)
    precision += 1 / np.log1p(np.exp(raw))
    weighted += mean / np.log1p(np.exp(raw))
  found = agent.posterior(params, steps, None)
  np.testing.assert_allclose(found.mean, weighted / precision, rtol=1e-6)
  np.testing.assert_allclose(np.exp(-2 * found.log_scale), precision, rtol=1e-6)


def test_actor_and_critics_read_state_and_task():
  agent = _agent()
  params = agent.init(jax.random.key(0), jnp.zeros(3))
  seen, z = jnp.ones((4, 3)), jnp.ones(LATENT)
  law = agent.policy(params, seen, z)
  assert isinstance(law, TanhGaussian) and law.mean.shape == (4, 2)
  values = agent.values(params["critics"], seen, law.mode, z)
  assert values.shape == (2, 4) and np.all(values[0] != values[1])
  moved = agent.values(params["critics"], seen, law.mode, z + 1)
  assert np.all(values != moved)
  assert np.all(agent.policy(params, seen, z + 1).mean != law.mean)


@pytest.mark.parametrize("part", ["encoder", "actor", "critic"])
def test_model_with_another_number_of_outputs_is_named(part):
  agent = _agent(**{part: 3})
  with pytest.raises(ValueError, match=f"^{part}: .* build it with . outputs"):
    agent.init(jax.random.key(0), jnp.zeros(3))


def test_discrete_actions_are_refused():
  with pytest.raises(ValueError, match=r"^actions=Discrete\(number=2\): "):
    pearl_agent(MLP(4), MLP(4), MLP(1), Discrete(2))
  with pytest.raises(ValueError, match="^latent=0: must be 1 or more"):
    pearl_agent(MLP(4), MLP(4), MLP(1), Continuous(2), latent=0)
