"""Random MDPs: their distribution, their dynamics, what can be earned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.players import random_player
from metajax.tasks.tabular_mdp import (
  MDPParams,
  MDPState,
  TabularMDP,
  tabular_mdps,
)
from metajax.tasks.trials import play

NUM_TASKS = 300
STATES, ACTIONS, HORIZON = 10, 5, 10  # The defaults, of Duan et al. (2016).


@pytest.fixture(scope="module")
def mdps():
  """Returns transitions and mean rewards in float64, a task per row."""
  tasks = tabular_mdps(1)
  keys = jax.random.split(jax.random.key(0), NUM_TASKS)
  (params, *_), _ = jax.jit(jax.vmap(tasks.reset))(keys)
  return tuple(
    np.asarray(x, np.float64) for x in (params.transitions, params.means)
  )


def test_transitions_are_flat_dirichlet(mdps):
  transitions, _ = mdps
  assert transitions.shape == (NUM_TASKS, STATES, ACTIONS, STATES)
  assert transitions.min() >= 0
  np.testing.assert_allclose(transitions.sum(-1), 1, atol=1e-5)
  rows = transitions.reshape(-1, STATES)  # 15000, independent of each other.
  for place in (0, 4, STATES - 1):
    marginal = scipy.stats.kstest(rows[:, place], "beta", (1, STATES - 1))
    assert marginal.pvalue > 1e-3
  # A flat Dirichlet's E[x_i x_j] = 1 / (S (S + 1)), and twice that for i = j.
  products = rows[:, [1, 1]] * rows[:, [7, 1]]
  expected = np.array([1, 2]) / (STATES * (STATES + 1))
  error = products.std(axis=0) / np.sqrt(len(rows))
  assert np.all(np.abs(products.mean(axis=0) - expected) < 4 * error)


def test_mean_rewards_are_normal_about_one(mdps):
  _, means = mdps
  assert means.shape == (NUM_TASKS, STATES, ACTIONS)
  normal = scipy.stats.norm(1, 1)
  assert scipy.stats.kstest(means.ravel(), normal.cdf).pvalue > 1e-3
  # Those of one task are as far apart as those of two.
  within = means.reshape(NUM_TASKS, -1).var(axis=1, ddof=1).mean()
  assert abs(within - 1) < 4 * np.sqrt(2 / means.size)


@pytest.fixture(scope="module")
def small():
  """Every action of every state, taken 2000 times."""
  draw = np.random.default_rng(0)
  transitions = draw.dirichlet(np.ones(3), (3, 2))
  means = draw.normal(size=(3, 2))
  params = MDPParams(
    transitions=jnp.asarray(transitions, jnp.float32),
    means=jnp.asarray(means, jnp.float32),
    max_steps_in_episode=7,
  )
  environment = TabularMDP(3, 2)

  def step(place, action, key):
    state = MDPState(time=jnp.int32(2), place=place)
    observation, state, reward, *_ = environment.step_env(
      key, state, action, params
    )
    return observation, state, reward

  places, actions = np.divmod(np.arange(6, dtype=np.int32), 2)
  step = jax.vmap(jax.vmap(step, (None, None, 0)))
  keys = jax.random.split(jax.random.key(1), (6, 2000))
  taken = jax.jit(step)(places, actions, keys)
  return transitions.reshape(6, 3), means.ravel(), taken


def test_next_states_are_as_frequent_as_the_transitions_say(small):
  transitions, _, (observations, states, _) = small
  assert np.all(states.time == 3)
  np.testing.assert_array_equal(
    observations, np.eye(3)[np.asarray(states.place)]
  )
  for row, places in zip(transitions, np.asarray(states.place), strict=True):
    counts = np.bincount(places, minlength=3)
    assert scipy.stats.chisquare(counts, row * 2000).pvalue > 1e-3


def test_rewards_are_normal_about_their_mean_wherever_one_goes(small):
  _, means, (_, states, rewards) = small
  noise = np.asarray(rewards, np.float64) - means[:, None]
  for samples in (*noise, noise.ravel()):
    assert scipy.stats.kstest(samples, "norm").pvalue > 1e-3
  for place in range(3):
    there = noise[np.asarray(states.place) == place]
    assert abs(there.mean()) < 4 / np.sqrt(there.size)


@pytest.fixture(scope="module")
def played():
  """Trials of a random player, three episodes each."""
  tasks = tabular_mdps(3, num_states=4, num_actions=3, horizon=HORIZON)
  assert (tasks.num_actions, tasks.num_steps) == (3, 3 * HORIZON)
  player = random_player(tasks.num_actions)
  keys = jax.random.split(jax.random.key(2), NUM_TASKS)
  run = jax.jit(jax.vmap(lambda key: play(player, tasks, key)))
  return jax.tree.map(np.asarray, run(keys))


def test_every_episode_begins_in_the_first_state_and_lasts_the_horizon(played):
  t = np.arange(3 * HORIZON + 1)
  np.testing.assert_array_equal(
    played.steps.ended,
    np.tile((t > 0) & (t % HORIZON == 0), (NUM_TASKS, 1)),
  )
  observations = played.steps.observation
  assert observations.shape[-1] == 4
  assert np.all((observations == 0) | (observations == 1))
  assert np.all(observations.sum(-1) == 1)
  in_first = observations[..., 0].mean(axis=0)
  np.testing.assert_array_equal(in_first[t % HORIZON == 0], 1)
  # Elsewhere as often as anywhere.
  assert abs(in_first[t % HORIZON != 0].mean() - 1 / 4) < 0.05


def test_random_player_earns_one_a_step(played):
  returns = played.steps.reward[:, 1:].astype(np.float64).sum(-1) / 3
  error = returns.std() / np.sqrt(NUM_TASKS)
  assert error < 0.25
  assert abs(returns.mean() - HORIZON) < 4 * error


@pytest.mark.parametrize("discount, average", [(1.0, 21.827), (0.99, 20.867)])
def test_optimum_averages_what_it_should(mdps, discount, average):
  """Value iteration from the horizon back; an episode begins in state 0.

  Shares that were published are of the discounted one: 20.8.
  """
  transitions, means = mdps
  values = np.zeros((NUM_TASKS, STATES))
  for _ in range(HORIZON):
    ahead = np.einsum("tsan,tn->tsa", transitions, values)
    values = (means + discount * ahead).max(axis=-1)
  optimum = values[:, 0]
  error = optimum.std() / np.sqrt(NUM_TASKS)
  assert error < 0.2
  # The same of 100,000 MDPs drawn by numpy, with standard error 0.007.
  assert abs(optimum.mean() - average) < 4 * np.hypot(error, 0.007)


def test_gymnax_resets_and_steps_it():
  """By gymnax's own jitted methods, around a ring of sure transitions."""
  environment = TabularMDP(4, 2)
  ring = np.stack([np.roll(np.eye(4), 1, 1), np.roll(np.eye(4), -1, 1)], 1)
  means = 100 * np.arange(8.0).reshape(4, 2)
  params = MDPParams(
    transitions=jnp.asarray(ring, jnp.float32),
    means=jnp.asarray(means, jnp.float32),
    max_steps_in_episode=5,
  )
  observation, state = environment.reset(jax.random.key(0), params)
  space = environment.observation_space(params)
  place, visited = 0, []
  for i, action in enumerate([0, 0, 1, 0, 0, 1, 1]):
    assert space.contains(observation)
    np.testing.assert_array_equal(observation, np.eye(4)[place])
    observation, state, reward, terminated, truncated, _ = environment.step(
      jax.random.key(i), state, action, params
    )
    assert abs(reward - means[place, action]) < 6
    assert not terminated
    assert truncated == (i == 4)
    place = 0 if i == 4 else (place + (-1 if action else 1)) % 4
    visited.append(place)
  assert set(visited) == set(range(4))
  assert not space.contains(observation + 1)
  actions = environment.action_space(params)
  assert environment.num_actions == 2
  assert [bool(actions.contains(jnp.int32(a))) for a in (-1, 0, 1, 2)] == [
    False,
    True,
    True,
    False,
  ]


def test_default_parameters_are_an_mdp_of_the_size_asked_for():
  params = TabularMDP(4, 2).default_params
  assert params.means.shape == (4, 2)
  np.testing.assert_allclose(params.transitions, np.full((4, 2, 4), 0.25))


@pytest.mark.parametrize(
  "arguments, name",
  [
    ({"num_episodes": 0}, "num_episodes=0"),
    ({"num_states": 0}, "num_states=0"),
    ({"num_actions": -1}, "num_actions=-1"),
    ({"horizon": 0}, "horizon=0"),
  ],
)
def test_impossible_arguments_are_named(arguments, name):
  with pytest.raises(ValueError, match=f"^{name}: must be 1 or more"):
    tabular_mdps(**{"num_episodes": 1, **arguments})
