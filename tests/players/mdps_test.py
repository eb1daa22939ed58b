"""Players of MDPs: what they count, and what they plan with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from metajax.players import (
  Sizes,
  mdp_bonus,
  mdp_epsilon_greedy,
  optimal_value,
  posterior_sampling,
  random_player,
  ucrl2,
)
from metajax.tasks.tabular_mdp import MDPParams, tabular_mdps
from metajax.tasks.trials import Step, play

SIZES = Sizes(states=3, actions=2, horizon=2)
RNG = np.random.default_rng(0)
# (state, action, reward, whether it ends the episode), and where it leads.
EXPERIENCE = [
  (0, 1, 2.0, False, 2),
  (2, 0, -1.0, True, 0),
  (0, 1, 3.0, False, 1),
  (1, 1, 0.5, True, 0),
  (0, 0, 1.5, False, 2),
  (2, 0, 4.0, True, 0),
]


def _steps():
  """What a player sees of the experience, one after the other."""
  seen = [(0, 0, 0.0, False, True)]
  seen += [(to, a, r, end, False) for _, a, r, end, to in EXPERIENCE]
  for place, action, reward, ended, first in seen:
    yield Step(
      jax.nn.one_hot(place, SIZES.states),
      jnp.int32(action),
      jnp.float32(reward),
      jnp.bool_(ended),
      jnp.bool_(first),
    )


def _memory(player):
  """Its memory after the experience, whatever it would have done."""
  memory, act = player.start(), jax.jit(player.act)
  for number, step in enumerate(_steps()):
    _, memory = act(memory, step, jax.random.key(number))
  return memory


def _posterior():
  """Counts by hand: `(transitions, means, visits)`, posterior means."""
  shape = (SIZES.states, SIZES.actions)
  counts, visits = np.ones((*shape, SIZES.states)), np.zeros(shape)
  rewards = np.zeros(shape)
  for state, action, reward, ended, to in EXPERIENCE:
    visits[state, action] += 1
    rewards[state, action] += reward
    if not ended:  # Else the player sees where the next episode begins.
      counts[state, action, to] += 1
  means = (1 + rewards) / (1 + visits)
  return counts / counts.sum(-1, keepdims=True), means, visits


def _plan(rewards, expect):
  """Two steps of value iteration; `expect(v)` is that of the next state."""
  last = rewards
  return np.stack([rewards + expect(last.max(-1)), last])


def test_greedy_plans_with_the_posterior_means():
  memory = _memory(mdp_epsilon_greedy(SIZES, 0.0))
  transitions, means, visits = _posterior()
  np.testing.assert_allclose(memory.beliefs.visits, visits)
  np.testing.assert_allclose(memory.beliefs.means, means, rtol=1e-6)
  np.testing.assert_allclose(memory.beliefs.transitions, transitions, rtol=1e-6)
  # The last step began an episode, so that the plan is of all of it.
  np.testing.assert_allclose(
    memory.plan, _plan(means, lambda v: transitions @ v), rtol=1e-5
  )


def test_bonus_is_added_to_rarely_tried_actions():
  memory = _memory(mdp_bonus(SIZES, 2.0))
  transitions, means, visits = _posterior()
  np.testing.assert_allclose(
    memory.plan,
    _plan(means + 2.0 / (1 + visits), lambda v: transitions @ v),
    rtol=1e-5,
  )


@pytest.mark.parametrize("scale", [0.1, 0.4, 3.0])
def test_ucrl2_takes_the_best_transitions_within_their_bounds(scale):
  """A linear program finds them, one for each state and action."""
  memory = _memory(ucrl2(SIZES, scale))
  transitions, means, visits = _posterior()
  width = scale * np.sqrt(np.log(visits.sum() + 2) / (1 + visits))

  def best(values):
    found = np.zeros(visits.shape)
    n = SIZES.states
    for place in np.ndindex(*visits.shape):
      # p - d+ + d- = the posterior mean, all >= 0, the sum of d bounded.
      bound = np.sqrt(n) * width[place]
      solved = scipy.optimize.linprog(
        np.concatenate([-values, np.zeros(2 * n)]),
        A_ub=np.concatenate([np.zeros(n), np.ones(2 * n)])[None],
        b_ub=[bound],
        A_eq=np.block(
          [
            [np.eye(n), -np.eye(n), np.eye(n)],
            [np.ones((1, n)), np.zeros((1, 2 * n))],
          ]
        ),
        b_eq=np.append(transitions[place], 1.0),
      )
      found[place] = -solved.fun
    return found

  np.testing.assert_allclose(memory.plan, _plan(means + width, best), rtol=1e-4)


def test_posterior_samples_have_its_moments():
  """The last step's values are sampled mean rewards."""
  player = posterior_sampling(SIZES)
  memory = _memory(player)
  *_, last = _steps()

  @jax.jit
  @jax.vmap
  def plans(key):
    # Once more the same step: counted again, for every sample the same.
    return player.act(memory, last, key)[1].plan

  samples = np.asarray(plans(jax.random.split(jax.random.key(1), 4000)))
  _, _, visits = _posterior()
  rewards = np.zeros(visits.shape)
  for state, action, reward, *_ in EXPERIENCE:
    rewards[state, action] += reward
  visits[0, 0] += 1  # From state 0, where the memory ends, by its action 0.
  rewards[0, 0] += 4.0
  variance = 1 / (1 + visits)
  error = 5 * np.sqrt(variance / 4000)
  difference = samples[:, 1].mean(0) - (1 + rewards) * variance
  assert np.all(np.abs(difference) < error)
  np.testing.assert_allclose(samples[:, 1].var(0), variance, rtol=0.15)


def test_more_samples_are_more_optimistic():
  """Expected values do not fall, and some rise."""

  def start_value(num_samples):
    player = posterior_sampling(SIZES, num_samples)
    first = next(_steps())
    act = jax.vmap(lambda key: player.act(player.start(), first, key)[1].plan)
    keys = jax.random.split(jax.random.key(2), 500)
    return float(jax.jit(act)(keys)[:, 0, 0].max(-1).mean())

  assert start_value(4) > start_value(1) + 0.5


def test_optimum_is_the_best_of_all_policies():
  """By trying them: an action for every step and state."""
  transitions = RNG.dirichlet(np.ones(3), (3, 2))
  means = RNG.normal(1, 1, (3, 2))
  totals = []
  for policy in np.ndindex(*[2] * 6):
    first, second = np.reshape(policy, (2, 3))
    later = means[np.arange(3), second]
    totals.append(means[0, first[0]] + transitions[0, first[0]] @ later)
  params = MDPParams(
    transitions=jnp.asarray(transitions), means=jnp.asarray(means)
  )
  np.testing.assert_allclose(
    optimal_value(params, SIZES), max(totals), rtol=1e-5
  )


def test_players_come_closer_to_the_optimum_than_chance():
  """In 10 episodes; and plans are a branch, made once an episode."""
  tasks, sizes = tabular_mdps(10), Sizes()
  keys = jax.random.split(jax.random.key(3), 100)
  players = {
    "greedy": mdp_epsilon_greedy(sizes, 0.0),
    "random": random_player(sizes.actions),
  }
  means = {}
  for name, player in players.items():
    many = jax.vmap(lambda key, p=player: play(p, tasks, key).rewards.sum())
    means[name] = float(jax.jit(many)(keys).mean())
    if name == "greedy":
      assert "cond[" in str(jax.make_jaxpr(many)(keys))
  assert abs(means["random"] - 100) < 4 * 2.1  # Standard error of 100 MDPs.
  assert means["random"] + 20 < means["greedy"] < 218.4
