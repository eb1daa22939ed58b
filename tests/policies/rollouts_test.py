"""Rollouts, their masks, and the advantages of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.mlp import MLP
from metajax.policies.advantages import (
  Estimator,
  advantages,
  discounted_returns,
  linear_values,
)
from metajax.policies.policy import categorical_policy, gaussian_policy
from metajax.policies.rollouts import Rollouts, along, play_episodes
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import Continuous, Discrete, playable

HORIZON, EPISODES = 12, 5


@functools.cache
def _counting():
  """Counts actions of 1; an episode ends at 3, and then it would overflow."""

  def step(task, state, action, rng):
    del rng
    state = state + action.astype(jnp.float32)
    return state, state[None], 10.0 * task + state, state >= 3

  return playable(
    lambda rng: jax.random.uniform(rng),
    lambda task, rng: (jnp.float32(0), jnp.zeros(1)),
    step,
    actions=Discrete(2),
    horizon=HORIZON,
  )


@functools.cache
def _played():
  tasks = _counting()
  policy = categorical_policy(MLP(2, (4,)), tasks.actions)
  params = policy.init(jax.random.key(0), jnp.zeros((1, 1)))
  rollouts = jax.jit(
    lambda p: play_episodes(
      policy, p, tasks, jnp.float32(0.5), jax.random.key(1), EPISODES
    )
  )(params)
  return policy, params, rollouts


def test_rollouts_are_those_of_a_loop_over_the_actions():
  _, _, rollouts = _played()
  rollouts = jax.tree.map(np.asarray, rollouts)
  assert rollouts.actions.shape == (EPISODES, HORIZON)
  for e in range(EPISODES):
    count, going = 0, True
    for t in range(HORIZON):
      assert rollouts.mask[e, t] == going
      assert rollouts.observations[e, t, 0] == count
      if going:
        count += rollouts.actions[e, t]
        assert rollouts.rewards[e, t] == 5.0 + count
        going = count < 3
      else:
        assert rollouts.rewards[e, t] == 0
  assert rollouts.mask.sum() < rollouts.mask.size  # Some episodes ended.
  assert len(np.unique(rollouts.actions, axis=0)) > 1


@pytest.mark.slow
def test_stored_distributions_are_those_of_the_policy():
  policy, params, rollouts = _played()
  found = along(policy, params, rollouts)
  np.testing.assert_allclose(
    found.log_prob(rollouts.actions), rollouts.log_probs, rtol=1e-5, atol=1e-6
  )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Estimator(), Estimator(gae=0.9)])
def test_advantages_equal_a_loop_in_numpy(estimator):
  """The baseline is numpy's least squares, one row for each step played."""
  _, _, rollouts = _played()
  seen, rewards, mask = (
    np.asarray(x, np.float64)
    for x in (rollouts.observations, rollouts.rewards, rollouts.mask)
  )
  returns = np.zeros((EPISODES, HORIZON + 1))
  for t in reversed(range(HORIZON)):
    returns[:, t] = rewards[:, t] + estimator.discount * returns[:, t + 1]
  s, t = seen[..., 0], np.arange(HORIZON) / 100 + 0 * rewards
  features = np.stack([s, s**2, t, t**2, t**3, 1 + 0 * t], -1)
  rows = mask > 0
  size = np.sqrt(np.square(features[rows]).mean(0))
  scaled = features / size
  matrix = np.concatenate(
    [scaled[rows] / np.sqrt(rows.sum()), np.sqrt(1e-5) * np.eye(6)]
  )
  target = np.append(returns[:, :-1][rows] / np.sqrt(rows.sum()), np.zeros(6))
  fitted = scaled @ np.linalg.lstsq(matrix, target, rcond=None)[0]
  values = np.pad(fitted * mask, ((0, 0), (0, 1)))
  expected = np.zeros((EPISODES, HORIZON + 1))
  for i in reversed(range(HORIZON)):
    error = rewards[:, i] + estimator.discount * values[:, i + 1] - values[:, i]
    share = estimator.discount * estimator.gae
    expected[:, i] = error + share * expected[:, i + 1]
  expected = expected[:, :-1]
  inside = expected[rows]
  expected = np.where(rows, (expected - inside.mean()) / inside.std(), 0.0)
  with jax.enable_x64(True):
    wide = jax.tree.map(
      lambda x: (
        jnp.asarray(np.asarray(x, np.float64))
        if jnp.issubdtype(x.dtype, jnp.floating)
        else x
      ),
      rollouts,
    )
    found = advantages(wide, estimator)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  # In float32, too, though the features of time are nearly dependent.
  np.testing.assert_allclose(
    advantages(rollouts, estimator), expected, rtol=0.02, atol=0.02
  )


@pytest.mark.parametrize("baseline", [True, False])
def test_advantages_of_equal_rewards_have_a_finite_derivative(baseline):
  """They have no deviation, whose root has an infinite derivative."""
  shape = (2, 3)
  rollouts = Rollouts(
    *map(jnp.zeros, ((*shape, 1), shape, shape)), jnp.ones(shape, bool), None
  )
  slope = jax.jacobian(
    lambda seen, rewards: advantages(
      rollouts._replace(observations=seen, rewards=rewards),
      Estimator(baseline=baseline),
    ),
    (0, 1),
  )(rollouts.observations, rollouts.rewards)
  assert all(np.isfinite(x).all() for x in slope)


@pytest.mark.slow
def test_baseline_finds_values_that_are_linear_in_the_features():
  draw = np.random.default_rng(0).normal
  seen = draw(size=(20, 30, 2)).astype(np.float32)
  values = 1.0 + seen[..., 0] - 2 * seen[..., 1] ** 2 - 3 * np.arange(30) / 100
  found = linear_values(seen, values, np.ones((20, 30), bool))
  np.testing.assert_allclose(found, values, atol=0.02)


@pytest.mark.slow
def test_what_comes_after_the_end_changes_no_advantage():
  _, _, rollouts = _played()
  mask = rollouts.mask
  junk = rollouts._replace(
    observations=jnp.where(mask[..., None], rollouts.observations, 7.0),
    rewards=jnp.where(mask, rollouts.rewards, 1e4),
  )
  estimate = jax.jit(lambda r: advantages(r, Estimator(gae=0.9)))
  np.testing.assert_array_equal(estimate(rollouts), estimate(junk))


@pytest.mark.slow
def test_navigation_is_the_published_one():
  """The goal is off the grid of steps, then within 0.01 of a grid point."""
  tasks = navigation()
  goal = jnp.array([0.205, -0.095])
  state, seen = tasks.begin(goal, jax.random.key(0))
  np.testing.assert_array_equal(seen, np.zeros(2))
  place = np.zeros(2)
  for action, ended in [((3.0, 0.0), False), ((1.0, -0.9), True)]:
    state, seen, reward, found = tasks.step(
      goal, state, jnp.array(action), jax.random.key(0)
    )
    place = place + np.clip(0.1 * np.array(action), -0.1, 0.1)
    np.testing.assert_allclose(seen, place, rtol=1e-6)
    expected = -np.linalg.norm(place - np.asarray(goal))
    np.testing.assert_allclose(reward, expected, rtol=1e-4)
    assert bool(found) == ended
  goals = jax.vmap(tasks.draw)(jax.random.split(jax.random.key(0), 2000))
  assert float(jnp.abs(goals).max()) <= 0.5
  # The mean of |goal| is (sqrt 2 + log(1 + sqrt 2)) / 6.
  distance = np.linalg.norm(goals, axis=1).mean()
  np.testing.assert_allclose(distance, 0.3826, atol=0.01)


def test_policy_of_other_actions_is_refused():
  tasks = navigation()
  policy = categorical_policy(MLP(2, (4,)), Discrete(2))
  with pytest.raises(ValueError, match="policy: chooses from Discrete"):
    play_episodes(policy, {}, tasks, jnp.zeros(2), jax.random.key(0), 1)
  policy = gaussian_policy(MLP(2, (4,)), Continuous(2))
  with pytest.raises(ValueError, match="policy: chooses from Continuous"):
    play_episodes(policy, {}, _counting(), 0.5, jax.random.key(0), 1)
  with pytest.raises(ValueError, match="num_episodes=0: must be"):
    play_episodes(policy, {}, tasks, jnp.zeros(2), jax.random.key(0), 0)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"actions": 2}, "actions=2: must be Discrete"),
    ({"actions": Discrete(0)}, "actions=0: must be 1 or more"),
    ({"actions": Continuous(1.5)}, "actions=1.5: must be an integer"),
    ({"horizon": 0}, "horizon=0: must be 1 or more"),
  ],
)
def test_tasks_that_cannot_be_are_refused(changes, message):
  given = {"actions": Discrete(2), "horizon": 3, **changes}
  with pytest.raises(ValueError, match=message):
    playable(None, None, None, **given)


def test_what_the_mask_leaves_out_has_no_effect_on_the_baseline():
  draw = np.random.default_rng(0)
  seen, returns = draw.normal(size=(2, 5, 3)), draw.normal(size=(2, 5))
  mask = np.arange(5) < np.array([[5], [3]])
  wanted = linear_values(jnp.asarray(seen), jnp.asarray(returns), mask)
  seen[~mask], returns[~mask] = np.nan, np.nan
  found = linear_values(jnp.asarray(seen), jnp.asarray(returns), mask)
  np.testing.assert_allclose(found[mask], wanted[mask], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_returns_of_narrow_rewards_are_summed_in_float32(dtype):
  # Before 1,000 rewards of 1, a sum in bfloat16 stands still at 256.
  found = jax.jit(discounted_returns)(jnp.ones(1000, dtype), 1.0)
  np.testing.assert_array_equal(found, np.arange(1000, 0, -1))
