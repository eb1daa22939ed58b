"""Bernoulli bandits: their distribution, what arms pay, gymnax's interface."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.tasks.bandits import BanditParams, BernoulliArms, bandits
from metajax.tasks.trials import Player, play

NUM_TASKS = 2000


def _probabilities(num_arms):
  """Of `NUM_TASKS` bandits, `[tasks, arms]`."""
  tasks = bandits(num_arms, 1)

  def draw(key):
    (params, *_), _ = tasks.reset(key)
    return params.probabilities

  keys = jax.random.split(jax.random.key(0), NUM_TASKS)
  return np.asarray(jax.jit(jax.vmap(draw))(keys), np.float64)


def test_probabilities_are_uniform_and_independent():
  probabilities = _probabilities(3)
  assert probabilities.shape == (NUM_TASKS, 3)
  for arm in probabilities.T:
    assert scipy.stats.kstest(arm, "uniform").pvalue > 1e-3
  correlation = np.corrcoef(probabilities.T)[np.triu_indices(3, 1)]
  assert np.abs(correlation).max() < 4 / np.sqrt(NUM_TASKS)


def test_arms_pay_one_as_often_as_their_probability_says():
  """2000 pulls of each arm of 8 bandits."""
  tasks, pulls = bandits(4, 100), 2000

  def pull(key):
    task_key, pull_key = jax.random.split(key)
    task, _ = tasks.reset(task_key)

    def one(arm, key):
      return tasks.step(task, arm, key)[2]

    keys = jax.random.split(pull_key, (4, pulls))
    rewards = jax.vmap(jax.vmap(one, (None, 0)))(jnp.arange(4), keys)
    return task[0].probabilities, rewards

  p, rewards = jax.jit(jax.vmap(pull))(jax.random.split(jax.random.key(1), 8))
  p, rewards = np.asarray(p, np.float64), np.asarray(rewards)
  assert np.all((rewards == 0) | (rewards == 1))
  z = (rewards.mean(-1) - p) / np.sqrt(p * (1 - p) / pulls)
  # P(any of 32 beyond 4.5) = 2e-4; their squares add up to a chi-square.
  assert np.abs(z).max() < 4.5
  assert 1e-3 < scipy.stats.chi2.sf((z**2).sum(), z.size) < 1 - 1e-3


def test_a_trial_pulls_anew_with_the_same_probability():
  """E[p] = 1/2 and E[p^2] = 1/3, of one pull and of two of the same arm."""
  tasks = bandits(2, 5)

  def act(memory, step, rng):
    return jnp.int32(1), memory

  run = jax.vmap(lambda key: play(Player(lambda: (), act), tasks, key))
  trial = jax.jit(run)(jax.random.split(jax.random.key(2), NUM_TASKS))
  r = np.asarray(trial.steps.reward[:, 1:], np.float64)
  for samples, expected in (
    (r[:, 0], 1 / 2),
    (r[:, 4], 1 / 2),
    (r[:, 0] * r[:, 1], 1 / 3),
    (r[:, 0] * r[:, 4], 1 / 3),
  ):
    error = np.sqrt(expected * (1 - expected) / NUM_TASKS)
    assert abs(samples.mean() - expected) < 4 * error
  # Nothing is to be seen, and it is over after the last pull.
  assert not np.any(trial.steps.observation)
  np.testing.assert_array_equal(
    trial.steps.ended, [[False] * 5 + [True]] * NUM_TASKS
  )


def test_gymnax_resets_and_steps_it():
  """By gymnax's own jitted methods, to the end of one episode and beyond."""
  environment = BernoulliArms(3)
  params = BanditParams(
    probabilities=jnp.array([0.0, 1.0, 0.5]), max_steps_in_episode=4
  )
  observation, state = environment.reset(jax.random.key(0), params)
  space = environment.observation_space(params)
  assert space.contains(observation)
  assert not space.contains(observation + 1)
  truncations = []
  for i, action in enumerate([0, 1, 1, 0, 1, 0]):
    observation, state, reward, terminated, truncated, _ = environment.step(
      jax.random.key(i), state, action, params
    )
    assert space.contains(observation)
    assert reward == action  # Arm 0 never pays and arm 1 always.
    assert not terminated
    truncations.append(bool(truncated))
  assert truncations == [False, False, False, True, False, False]
  assert state.time == 2


def test_actions_are_the_arms():
  environment = BernoulliArms(3)
  space = environment.action_space(environment.default_params)
  assert environment.num_actions == bandits(3, 1).num_actions == 3
  assert [bool(space.contains(jnp.int32(a))) for a in (-1, 0, 2, 3)] == [
    False,
    True,
    True,
    False,
  ]
  # The default bandit has as many arms, all of which can be pulled.
  assert environment.default_params.probabilities.shape == (3,)


@pytest.mark.parametrize(
  "num_arms, num_pulls, message",
  [
    (1, 10, "^num_arms=1: must be 2 or more"),
    (0, 10, "^num_arms=0: must be 2 or more"),
    (2, 0, "=0: must be 1 or more"),
    (2, -3, "=-3: must be 1 or more"),
  ],
)
def test_too_few_arms_or_pulls_are_named(num_arms, num_pulls, message):
  with pytest.raises(ValueError, match=message):
    bandits(num_arms, num_pulls)
