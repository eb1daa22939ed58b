"""Players of Duan et al., against TabulaRL's equations in float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.players import (
  Sizes,
  tabularl_beb,
  tabularl_epsilon_greedy,
  tabularl_psrl,
  tabularl_ucrl2,
)
from metajax.tasks.tabular_mdp import tabular_mdps
from metajax.tasks.trials import Step, play

SIZES = Sizes(states=4, actions=3, horizon=3)
EPISODES = 6


def _experience():
  """Random episodes: (state, action, reward, next state) `horizon` times."""
  draw = np.random.default_rng(0)
  for _ in range(EPISODES):
    state, episode = 0, []
    for _ in range(SIZES.horizon):
      action, to = int(draw.integers(2)), int(draw.integers(4))
      episode.append((state, action, float(draw.normal(1)), to))
      state = to
    yield episode


def _memory(player):
  """Of a player that has seen it all, at the beginning of the next episode."""
  act, memory = jax.jit(player.act), player.start()
  seen = [(0, 0, 0.0, False, True)]
  for episode in _experience():
    for number, (_, action, reward, to) in enumerate(episode):
      ended = number == SIZES.horizon - 1
      seen.append((0 if ended else to, action, reward, ended, False))
  for number, (place, action, reward, ended, first) in enumerate(seen):
    step = Step(
      jax.nn.one_hot(place, SIZES.states),
      jnp.int32(action),
      jnp.float32(reward),
      jnp.bool_(ended),
      jnp.bool_(first),
    )
    _, memory = act(memory, step, jax.random.key(number))
  return memory


def _counts():
  """Visits, those whose next state was seen, sums of rewards, next states."""
  shape = (SIZES.states, SIZES.actions)
  visits, rewards = np.zeros(shape), np.zeros(shape)
  to_states = np.zeros((*shape, SIZES.states))
  for episode in _experience():
    for number, (state, action, reward, to) in enumerate(episode):
      visits[state, action] += 1
      rewards[state, action] += reward
      if number < SIZES.horizon - 1:
        to_states[state, action, to] += 1
  return visits, to_states.sum(-1), rewards, to_states


def _solve(value):
  """Loops; `value(state, action, values of next states, steps left)`."""
  plan = np.zeros((SIZES.horizon, SIZES.states, SIZES.actions))
  values = np.zeros(SIZES.states)
  for left in range(SIZES.horizon):
    q = plan[SIZES.horizon - 1 - left]
    for state, action in np.ndindex(*q.shape):
      q[state, action] = value(state, action, values, left)
    values = q.max(-1)
  return plan


def test_greedy_has_hardly_a_prior():
  visits, seen, rewards, to_states = _counts()

  def value(s, a, values, left):
    del left
    p = (to_states[s, a] + 1e-4) / (seen[s, a] + 4 * 1e-4)
    return rewards[s, a] / (visits[s, a] + 1e-4) + p @ values

  plan = _memory(tabularl_epsilon_greedy(SIZES, 0.0)).plan
  np.testing.assert_allclose(plan, _solve(value), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-4, 3e-3, 1.0])
def test_beb_adds_both_bonuses(scale):
  visits, seen, rewards, to_states = _counts()

  def value(s, a, values, left):
    p = (to_states[s, a] + 1) / (seen[s, a] + 4)
    mean = rewards[s, a] / (visits[s, a] + 1)  # The prior's mean is 0.
    bonus = 2 * 3**3 * scale / (1 + 4 + seen[s, a])
    return mean + 1 / (visits[s, a] + 2) + p @ values + left * bonus

  plan = _memory(tabularl_beb(SIZES, scale)).plan
  np.testing.assert_allclose(plan, _solve(value), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-4, 0.05, 0.3, 1.0])
def test_ucrl2_goes_to_the_best_state_from_the_worst_ones(scale):
  visits, seen, rewards, to_states = _counts()
  episode = EPISODES + 1  # The one that is planned.
  log = np.log(2 * 4 * 3 * (episode + 1) / 0.05)

  def value(s, a, values, left):
    del left
    width = scale * np.sqrt(4 * log / max(visits[s, a], 1))
    distance = scale * np.sqrt(4 * 4 * log / max(seen[s, a], 1))
    p = (to_states[s, a] + 1e-5) / (seen[s, a] + 4 * 1e-5)
    worst_first = np.argsort(values)
    best = worst_first[-1]
    p[best] = min(1.0, p[best] + distance / 2)
    for state in worst_first[:-1]:
      p[state] = max(0.0, p[state] - max(0.0, p.sum() - 1))
    return rewards[s, a] / (visits[s, a] + 1e-4) + width + p @ values

  plan = _memory(tabularl_ucrl2(SIZES, scale)).plan
  np.testing.assert_allclose(plan, _solve(value), rtol=2e-5)


def test_psrl_expects_rewards_of_zero():
  """Sampled mean rewards, which are the last step's values."""
  player = tabularl_psrl(SIZES)
  first = Step(
    jax.nn.one_hot(0, SIZES.states),
    jnp.int32(0),
    jnp.float32(0),
    jnp.bool_(False),
    jnp.bool_(True),
  )
  plan = lambda key: player.act(player.start(), first, key)[1].plan  # noqa: E731
  keys = jax.random.split(jax.random.key(0), 2000)
  means = np.asarray(jax.jit(jax.vmap(plan))(keys), np.float64)[:, -1]
  assert abs(means.mean()) < 4 / np.sqrt(means.size)
  assert abs(means.var() - 1) < 4 * np.sqrt(2 / means.size)


# Rewards of 10 episodes (Duan et al. 2016, table 2), and the numbers chosen.
PUBLISHED = {
  "ucrl2": (tabularl_ucrl2(Sizes(), 0.0631), 146.6),
  "beb": (tabularl_beb(Sizes(), 0.00158), 150.2),
  "greedy": (tabularl_epsilon_greedy(Sizes(), 0.0), 134.8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_mean_rewards_are_the_published_ones(name):
  player, published = PUBLISHED[name]
  tasks, instances = tabular_mdps(10), 300
  keys = jax.random.split(jax.random.key(1), instances)
  run = jax.jit(jax.vmap(lambda key: play(player, tasks, key).rewards.sum()))
  totals = np.asarray(run(keys), np.float64)
  error = totals.std() * np.sqrt(1 / instances + 1 / 1000)
  assert abs(totals.mean() - published) < 3 * error
