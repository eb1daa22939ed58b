"""The losses against a loop in numpy, and which parameters they reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.mlp import MLP
from metajax.off_policy import (
  PEARL,
  Transition,
  actor_loss,
  critic_loss,
  pearl_agent,
  pearl_loss,
)
from metajax.tasks.playable import Continuous

LATENT, TASKS, BATCH, CONTEXT = 2, 3, 6, 5
AGENT = pearl_agent(
  *[MLP(n, (5,)) for n in (2 * LATENT, 4, 1)], Continuous(2), latent=LATENT
)
NUMBERS = PEARL(discount=0.8, temperature=0.3, kl_weight=0.2)
PARTS = {"encoder", "actor", "critics"}


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _steps(seed, *shape):
  draw = np.random.default_rng(seed)
  return Transition(
    draw.normal(size=(*shape, 3)),
    np.tanh(draw.normal(size=(*shape, 2))),
    draw.normal(size=shape),
    draw.normal(size=(*shape, 3)),
    draw.uniform(size=shape) < 0.4,
  )


@pytest.fixture(scope="module")
def drawn():
  """Parameters and targets all of which matter, in float64."""
  shapes = jax.eval_shape(AGENT.init, jax.random.key(0), jnp.zeros(3))
  draw = np.random.default_rng(0).normal
  params = jax.tree.map(lambda x: draw(0, 0.7, x.shape), shapes)
  targets = jax.tree.map(lambda x: draw(0, 0.7, x.shape), shapes["critics"])
  return params, targets


def _values(critics, *inputs):
  x = np.concatenate(inputs)
  return [_mlp(critic, x)[0] for critic in critics]


def _mlp(params, x):
  layers = params["params"]
  x = x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
  return (
    np.maximum(x, 0) @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
  )


def _log_density(params, action, seen, z):
  """By the definition of a density of a function of a Gaussian."""
  mean, log_scale = np.split(_mlp(params["actor"], np.r_[seen, z]), 2)
  u, scale = np.arctanh(action), np.exp(log_scale)
  normal = np.exp(-0.5 * ((u - mean) / scale) ** 2) / scale / np.sqrt(2 * np.pi)
  return np.log(normal / (1 - action**2)).sum()


def test_critic_loss_is_a_mean_of_squared_errors(drawn, float64):
  params, targets = drawn
  steps, z, key = _steps(1, BATCH), np.array([0.4, -1.1]), jax.random.key(5)
  assert 0 < steps.ended.sum() < BATCH
  actions = AGENT.policy(params, steps.next_observation, z).sample(key)
  losses, q = [], []
  for i in range(BATCH):
    after = min(_values(targets, steps.next_observation[i], actions[i], z))
    log = _log_density(params, actions[i], steps.next_observation[i], z)
    y = steps.reward[i]
    if not steps.ended[i]:  # What stops at the horizon has a value.
      y = y + 0.8 * (after - 0.3 * log)
    found = _values(params["critics"], steps.observation[i], steps.action[i], z)
    losses.append(sum(0.5 * (x - y) ** 2 for x in found))
    q += found
  found, metrics = critic_loss(
    AGENT, params, targets, steps, z, key, discount=0.8, temperature=0.3
  )
  np.testing.assert_allclose(found, np.mean(losses), rtol=1e-6)
  np.testing.assert_allclose(metrics["q"], np.mean(q), rtol=1e-8)


def test_actor_loss_is_that_of_the_smaller_value(drawn, float64):
  params, _ = drawn
  steps, z, key = _steps(1, BATCH), np.array([0.4, -1.1]), jax.random.key(5)
  actions = AGENT.policy(params, steps.observation, z).sample(key)
  losses, logs = [], []
  for i in range(BATCH):
    seen = steps.observation[i]
    value = min(_values(params["critics"], seen, actions[i], z))
    logs.append(_log_density(params, actions[i], seen, z))
    losses.append(0.3 * logs[-1] - value)
  found, metrics = actor_loss(AGENT, params, steps, z, key, temperature=0.3)
  np.testing.assert_allclose(found, np.mean(losses), rtol=1e-6)
  np.testing.assert_allclose(metrics["entropy"], -np.mean(logs), rtol=1e-6)


def test_state_after_an_end_does_not_matter_and_that_at_the_horizon_does(
  drawn, float64
):
  params, targets = drawn
  steps, z = _steps(1, BATCH), np.array([0.4, -1.1])

  def loss(seen):
    return critic_loss(
      AGENT,
      params,
      targets,
      steps._replace(next_observation=seen),
      z,
      jax.random.key(5),
      discount=0.8,
      temperature=0.3,
    )[0]

  # y is a constant for the gradient, so that the loss itself is moved.
  for i in range(BATCH):
    moved = steps.next_observation.copy()
    moved[i] += 1.0
    assert (loss(moved) == loss(steps.next_observation)) == steps.ended[i]


def _whole(params, targets, **changes):
  batch, context = _steps(1, TASKS, BATCH), _steps(2, TASKS, CONTEXT)
  mask = np.arange(CONTEXT) < np.array([[CONTEXT], [2], [3]])
  return pearl_loss(
    AGENT,
    params,
    targets,
    batch,
    context,
    mask,
    jax.random.key(3),
    NUMBERS._replace(**changes),
  )


def _reached(grads):
  return {
    name
    for name in PARTS
    if any(np.abs(x).max() > 0 for x in jax.tree.leaves(grads[name]))
  }


def test_each_loss_reaches_its_own_parameters(drawn, float64):
  params, targets = drawn
  context, batch = _steps(2, CONTEXT), _steps(1, BATCH)

  def of_critics(params):
    z = AGENT.posterior(params, context, None).sample(jax.random.key(0))
    return critic_loss(
      AGENT,
      params,
      targets,
      batch,
      z,
      jax.random.key(5),
      discount=0.8,
      temperature=0.3,
    )[0]

  def of_actor(params):
    z = AGENT.posterior(params, context, None).sample(jax.random.key(0))
    return actor_loss(
      AGENT, params, batch, z, jax.random.key(5), temperature=0.3
    )[0]

  assert _reached(jax.grad(of_critics)(params)) == {"encoder", "critics"}
  assert _reached(jax.grad(of_actor)(params)) == {"actor"}
  for found in jax.tree.leaves(
    jax.grad(lambda t: _whole(params, t)[0])(targets)
  ):
    np.testing.assert_array_equal(found, 0)


def test_whole_gradient_is_that_of_its_terms(drawn, float64):
  """Finite differences of each term, in the parameters that it reaches."""
  params, targets = drawn
  grads = jax.grad(lambda p: _whole(p, targets)[0])(params)
  draw = np.random.default_rng(4).normal
  way = jax.tree.map(lambda x: draw(size=x.shape), params)

  def slope(value, part, size=1e-6):
    low, high = (
      params
      | {part: jax.tree.map(lambda x, d: x + s * d, params[part], way[part])}  # noqa: B023
      for s in (-size, size)
    )
    return (value(high) - value(low)) / (2 * size)

  def actor(p):
    return _whole(p, targets)[1]["actor_loss"]

  def divergence(p):
    return _whole(p, targets)[1]["kl"]

  # The actor's parameters would move y, which is a constant: its loss alone.
  known = {"actor": slope(actor, "actor")}
  for part in PARTS:
    found = sum(
      (g * d).sum()
      for g, d in zip(
        jax.tree.leaves(grads[part]), jax.tree.leaves(way[part]), strict=True
      )
    )
    if part in known:
      np.testing.assert_allclose(found, known[part], rtol=1e-5)
  # A greater weight of the divergence adds its slope to that of the encoder.
  more = jax.grad(lambda p: _whole(p, targets, kl_weight=1.2)[0])(params)
  added = sum(
    ((a - b) * d).sum()
    for a, b, d in zip(
      *(jax.tree.leaves(x["encoder"]) for x in (more, grads, way)), strict=True
    )
  )
  np.testing.assert_allclose(added, slope(divergence, "encoder"), rtol=1e-5)


def test_masked_context_does_not_matter(drawn, float64):
  params, targets = drawn
  batch, context = _steps(1, TASKS, BATCH), _steps(2, TASKS, CONTEXT)
  mask = np.arange(CONTEXT) < np.array([[CONTEXT], [2], [3]])

  def loss(context):
    return pearl_loss(
      AGENT, params, targets, batch, context, mask, jax.random.key(3), NUMBERS
    )[0]

  other = context._replace(reward=np.where(mask, context.reward, 1e3))
  assert loss(other) == loss(context)
  assert loss(context._replace(reward=context.reward + 1.0)) != loss(context)
