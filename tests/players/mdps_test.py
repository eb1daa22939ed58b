"""Players of MDPs: what they count, and what they plan with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from metajax.players import (
  Prior,
  Sizes,
  mdp_bonus,
  mdp_epsilon_greedy,
  optimal_value,
  posterior_sampling,
  random_player,
  tabularl_beb,
  tabularl_ucrl2,
  ucrl2,
)
from metajax.players.planning import posterior
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


def _posterior(mean=1.0, weight=1.0, dirichlet=1.0):
  """Counts by hand: `(transitions, means, visits)`, posterior means."""
  shape = (SIZES.states, SIZES.actions)
  counts = np.full((*shape, SIZES.states), dirichlet)
  visits, rewards = np.zeros(shape), np.zeros(shape)
  for state, action, reward, ended, to in EXPERIENCE:
    visits[state, action] += 1
    rewards[state, action] += reward
    if not ended:  # Else the player sees where the next episode begins.
      counts[state, action, to] += 1
  means = (weight * mean + rewards) / (weight + visits)
  return counts / counts.sum(-1, keepdims=True), means, visits


def _plan(rewards, expect):
  """Two steps of value iteration; `expect(v)` is that of the next state."""
  last = rewards
  return np.stack([rewards + expect(last.max(-1)), last])


@pytest.mark.parametrize("prior", [(1, 1, 1), (0, 1e-4, 1e-4), (-2, 3, 0.5)])
def test_greedy_plans_with_the_posterior_means(prior):
  memory = _memory(mdp_epsilon_greedy(SIZES, 0.0, Prior(*prior)))
  transitions, means, visits = _posterior(*prior)
  beliefs = posterior(memory.counts, Prior(*prior))
  np.testing.assert_allclose(memory.counts.visits, visits)
  np.testing.assert_allclose(beliefs.means, means, rtol=1e-6)
  np.testing.assert_allclose(beliefs.transitions, transitions, rtol=1e-6)
  np.testing.assert_allclose(beliefs.weight, prior[1] + visits, rtol=1e-6)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("separately", [False, True])
def test_best_of_samples_is_taken_where_it_says(separately, monkeypatch):
  """By value iteration in numpy on the samples that the player drew."""
  shape = (4, SIZES.states, SIZES.actions)
  gammas = RNG.gamma(1.0, size=(*shape, SIZES.states))
  noise = RNG.normal(size=shape)
  monkeypatch.setattr(
    "metajax.players.mdps.gamma", lambda rng, shapes: jnp.asarray(gammas)
  )
  monkeypatch.setattr(jax.random, "normal", lambda rng, shape: noise)
  player = posterior_sampling(SIZES, 4, solve_separately=separately)
  memory = player.act(player.start(), next(_steps()), jax.random.key(0))[1]
  transitions = gammas / gammas.sum(-1, keepdims=True)
  rewards = 1 + noise  # A variance of 1 before the first visit.
  if separately:
    each = [
      _plan(r, lambda v, p=p: p @ v)
      for r, p in zip(rewards, transitions, strict=True)
    ]
    expected = np.max(each, axis=0)
  else:
    last = rewards.max(0)
    first = (rewards + transitions @ last.max(-1)).max(0)
    expected = np.stack([first, last])
  np.testing.assert_allclose(memory.plan, expected, rtol=1e-5)


def test_samples_need_a_number_and_a_prior():
  with pytest.raises(ValueError, match="^num_samples=0: must be 1 or more"):
    posterior_sampling(SIZES, 0)
  with pytest.raises(ValueError, match="^prior.transitions=0.5: "):
    posterior_sampling(SIZES, 1, Prior(transitions=0.5))


def test_equal_actions_are_chosen_from_at_random():
  """Of three actions, those never taken are equally good."""
  sizes = Sizes(states=3, actions=3, horizon=2)
  player = mdp_epsilon_greedy(sizes, 0.0)
  step = lambda first, reward: Step(  # noqa: E731
    jax.nn.one_hot(0, 3),
    jnp.int32(0),
    jnp.float32(reward),
    jnp.bool_(not first),
    jnp.bool_(first),
  )

  @jax.jit
  @jax.vmap
  def acts(key):
    action, memory = player.act(player.start(), step(True, 0.0), key)
    worse, _ = player.act(memory, step(False, -5.0), key)
    return action, worse

  first, second = acts(jax.random.split(jax.random.key(4), 3000))
  assert scipy.stats.chisquare(np.bincount(first, minlength=3)).pvalue > 1e-3
  frequencies = np.bincount(second, minlength=3)
  assert frequencies[0] == 0
  assert scipy.stats.chisquare(frequencies[1:]).pvalue > 1e-3


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_optimum_is_the_best_of_all_policies(discount):
  """By trying them: an action for every step and state."""
  transitions = RNG.dirichlet(np.ones(3), (3, 2))
  means = RNG.normal(1, 1, (3, 2))
  totals = []
  for policy in np.ndindex(*[2] * 6):
    first, second = np.reshape(policy, (2, 3))
    later = means[np.arange(3), second]
    totals.append(
      means[0, first[0]] + discount * transitions[0, first[0]] @ later
    )
  params = MDPParams(
    transitions=jnp.asarray(transitions), means=jnp.asarray(means)
  )
  np.testing.assert_allclose(
    optimal_value(params, SIZES, discount), max(totals), rtol=1e-5
  )


@pytest.mark.slow
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


SCALED = [mdp_bonus, ucrl2, tabularl_beb, tabularl_ucrl2]


@pytest.mark.parametrize(
  "make, scale",
  [(make, float("nan")) for make in SCALED]
  + [(make, -1.0) for make in (ucrl2, tabularl_ucrl2)],
)
def test_scales_that_cannot_be_are_named(make, scale):
  """NaN made the player take the first action, and bounds have no sign."""
  with pytest.raises(ValueError, match=f"^scale={scale}: must be"):
    make(Sizes(), scale)
