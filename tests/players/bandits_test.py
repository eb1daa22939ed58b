"""Players of bandits: what they count, choose and earn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from metajax import players
from metajax.players import (
  epsilon_greedy,
  gittins,
  gittins_indices,
  greedy,
  likeliest_thompson,
  random_player,
  thompson,
  ucb1,
)
from metajax.players.bandits import Counts
from metajax.tasks.bandits import bandits
from metajax.tasks.trials import Step, play

DRAWS = 2000


@functools.cache
def _indices(num_pulls, discount):
  return gittins_indices(num_pulls, discount, num_rates=201)


ARMS = 4
LEARNERS = {
  "greedy": greedy(ARMS),
  "epsilon_greedy": epsilon_greedy(ARMS, 0.3),
  "thompson": thompson(ARMS),
  "likeliest_thompson": likeliest_thompson(ARMS, 3),
  "ucb1": ucb1(ARMS, 0.2),
  "gittins": gittins(ARMS, _indices(12, 0.9)),
}


def _step(action, reward, first=False):
  return Step(
    jnp.zeros(1),
    jnp.int32(action),
    jnp.float32(reward),
    jnp.bool_(False),
    jnp.bool_(first),
  )


@functools.partial(jax.jit, static_argnums=0)
def _act(player, memory, step):
  """Acts once with each of `DRAWS` memories, with keys of their own."""
  keys = jax.random.split(jax.random.key(0), DRAWS)
  return jax.vmap(player.act, (0, None, 0))(memory, step, keys)


def _choices(player, successes, failures):
  """What is pulled with these counts, `[DRAWS, arms]` each, 1 at first."""
  memory = Counts(*(jnp.asarray(x, jnp.float32) for x in (successes, failures)))
  return np.asarray(_act(player, memory, _step(0, 0, first=True))[0])


def _frequencies(player, successes, failures):
  """How often each arm is pulled in `DRAWS` draws with the same counts."""
  counts = (np.tile(x, (DRAWS, 1)) for x in (successes, failures))
  return np.bincount(_choices(player, *counts), minlength=len(successes))


def _is_uniform(frequencies):
  return scipy.stats.chisquare(frequencies).pvalue > 1e-3


def _random_counts():
  """Counts of at most 11 pulls an arm."""
  draw = np.random.default_rng(0)
  pulls = draw.integers(0, 12, (DRAWS, ARMS))
  successes = draw.integers(0, pulls + 1)
  return successes + 1, pulls - successes + 1


def _assert_best(choices, scores):
  """The choices are the highest scores, but for float32's rounding."""
  chosen = np.take_along_axis(scores, choices[:, None], axis=1)[:, 0]
  np.testing.assert_allclose(chosen, scores.max(axis=1), rtol=0, atol=1e-5)
  assert len(np.unique(choices)) == scores.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_memory_counts_the_steps_of_its_own_task(name):
  """Before a task's first step was another's: that is not counted."""
  player = LEARNERS[name]
  start = player.start()
  np.testing.assert_array_equal(start, np.ones((2, ARMS)))
  memory = jax.tree.map(lambda x: jnp.tile(x, (DRAWS, 1)), start)
  for step, expected in (
    (_step(0, 0, first=True), [[1, 1, 1, 1], [1, 1, 1, 1]]),
    (_step(2, 1), [[1, 1, 2, 1], [1, 1, 1, 1]]),
    (_step(2, 0), [[1, 1, 2, 1], [1, 1, 2, 1]]),
    (_step(0, 0), [[1, 1, 2, 1], [2, 1, 2, 1]]),
    (_step(1, 1, first=True), [[1, 1, 2, 1], [2, 1, 2, 1]]),
    (_step(2, 1), [[1, 1, 3, 1], [2, 1, 2, 1]]),
  ):
    _, memory = _act(player, memory, step)
    for found, by_hand in zip(memory, expected, strict=True):
      np.testing.assert_array_equal(found, np.tile(by_hand, (DRAWS, 1)))
  np.testing.assert_allclose(
    memory.means[0], [1 / 3, 1 / 2, 3 / 5, 1 / 2], rtol=1e-6
  )


@pytest.mark.parametrize("name", LEARNERS)
def test_ties_go_to_an_arm_at_random(name):
  """Of four arms that are new."""
  frequencies = _frequencies(LEARNERS[name], np.ones(ARMS), np.ones(ARMS))
  assert _is_uniform(frequencies)


def test_only_the_best_tie():
  frequencies = _frequencies(LEARNERS["greedy"], [2, 1, 4, 6], [1, 1, 2, 4])
  np.testing.assert_array_equal(frequencies[[1, 3]], 0)
  assert _is_uniform(frequencies[[0, 2]])


FIRST = {
  "greedy": greedy(ARMS, ties="first"),
  "epsilon_greedy": epsilon_greedy(ARMS, 0.3, ties="first"),
  "ucb1": ucb1(ARMS, 0.2, ties="first", count_first=False),
}


@pytest.mark.parametrize("name", FIRST)
def test_ties_go_to_the_first_where_a_paper_did_so(name):
  """Before the first pull; random actions go to any arm nevertheless."""
  found = _frequencies(FIRST[name], np.ones(ARMS), np.ones(ARMS))
  if name != "epsilon_greedy":
    np.testing.assert_array_equal(found, [DRAWS, 0, 0, 0])
    return
  expected = DRAWS * np.array([0.7 + 0.3 / 4, 0.3 / 4, 0.3 / 4, 0.3 / 4])
  assert scipy.stats.chisquare(found, expected).pvalue > 1e-3


def test_greedy_pulls_the_highest_mean():
  successes, failures = _random_counts()
  means = successes / (successes + failures)
  _assert_best(_choices(LEARNERS["greedy"], successes, failures), means)


@pytest.mark.parametrize(
  "player, scale, first",
  [
    (LEARNERS["ucb1"], 0.2, 0),
    (ucb1(ARMS, 1.0), 1.0, 0),
    (FIRST["ucb1"], 0.2, 2 * ARMS),
  ],
)
def test_ucb1_pulls_the_highest_bound(player, scale, first):
  successes, failures = _random_counts()
  pulls = successes + failures
  total = pulls.sum(axis=1, keepdims=True) - first
  bounds = successes / pulls + scale * np.sqrt(2 * np.log(total) / pulls)
  _assert_best(_choices(player, successes, failures), bounds)


def test_gittins_pulls_the_highest_index():
  successes, failures = _random_counts()
  scores = _indices(12, 0.9)[successes - 1, failures - 1]
  _assert_best(_choices(LEARNERS["gittins"], successes, failures), scores)


def test_gittins_beyond_its_table_goes_by_the_mean():
  """It clamped places outside of the table, and took NaN's arm 0."""
  player = gittins(2, _indices(3, 0.9))
  # Means of 2/9 and 3/5; only the second arm's NaN is inside of the table.
  assert _frequencies(player, [2, 3], [7, 2])[1] == DRAWS
  # A new arm has an index of its own, above 3/5 but below 9/10.
  assert 3 / 5 < _indices(3, 0.9)[0, 0] < 9 / 10
  assert _frequencies(player, [3, 1], [2, 1])[1] == DRAWS
  assert _frequencies(player, [9, 1], [1, 1])[0] == DRAWS


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_a_table_that_is_not_square_is_refused(shape):
  with pytest.raises(ValueError, match=r"^indices of shape \(3,.*must be sq"):
    gittins(2, np.zeros(shape))


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_epsilon_is_the_probability_of_any_arm(epsilon):
  player = {
    0.3: LEARNERS["epsilon_greedy"],
    1.0: epsilon_greedy(ARMS, 1.0),
  }[epsilon]
  frequencies = _frequencies(player, [2, 5, 1, 1], [2, 1, 3, 1])
  expected = np.full(ARMS, epsilon / ARMS)
  expected[1] += 1 - epsilon
  assert scipy.stats.chisquare(frequencies, DRAWS * expected).pvalue > 1e-3


def test_without_epsilon_it_is_greedy():
  counts = _random_counts()
  player = epsilon_greedy(ARMS, 0.0)
  np.testing.assert_array_equal(
    _choices(player, *counts), _choices(LEARNERS["greedy"], *counts)
  )


def _probability_of_the_second(first, second, above=0.0):
  """P(Y > max(X, above)) of independent X and Y."""
  density = lambda y: second.pdf(y) * first.cdf(y)  # noqa: E731
  return scipy.integrate.quad(density, above, 1)[0]


def _assert_frequency(frequencies, probability):
  error = np.sqrt(probability * (1 - probability) / DRAWS)
  assert abs(frequencies[1] / DRAWS - probability) < 4 * error


TWO_ARMS = {"thompson": thompson(2), "optimistic": thompson(2, optimistic=True)}
# Successes and failures of two arms.
PAIRS = [([3, 2], [2, 4]), ([1, 6], [1, 3])]


@pytest.mark.parametrize("successes, failures", PAIRS)
def test_thompson_pulls_an_arm_as_often_as_it_is_likely_the_best(
  successes, failures
):
  posteriors = map(scipy.stats.beta, successes, failures)
  expected = _probability_of_the_second(*posteriors)
  found = _frequencies(TWO_ARMS["thompson"], successes, failures)
  _assert_frequency(found, expected)


@pytest.mark.parametrize("successes, failures", PAIRS)
def test_an_optimistic_sample_is_at_least_the_mean(successes, failures):
  """The arm of the lower mean needs a sample above the other's mean too."""
  posteriors = list(map(scipy.stats.beta, successes, failures))
  means = [posterior.mean() for posterior in posteriors]
  lower = int(np.argmin(means))
  expected = _probability_of_the_second(
    posteriors[1 - lower], posteriors[lower], max(means)
  )
  found = _frequencies(TWO_ARMS["optimistic"], successes, failures)
  _assert_frequency(found[[1 - lower, lower]], expected)


def test_an_optimist_is_not_afraid_of_a_new_arm():
  """One of mean 1/2 is never left for one that is surely worth 1/5."""
  counts = [1, 40], [1, 160]
  assert _frequencies(TWO_ARMS["optimistic"], *counts)[1] == 0
  # A sample of the new one is below 1/5 that often.
  _assert_frequency(_frequencies(TWO_ARMS["thompson"], *counts), 0.2)


def test_random_player_acts_uniformly_and_remembers_nothing():
  player = random_player(5)
  keys = jax.random.split(jax.random.key(0), DRAWS)
  actions, memory = jax.vmap(lambda key: player.act((), _step(1, 1), key))(keys)
  assert memory == player.start() == ()
  assert _is_uniform(np.bincount(actions, minlength=5))


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("successes, failures", [*PAIRS, ([1, 3], [1, 1])])
def test_likeliest_sample_is_that_of_the_highest_density(
  num_samples, successes, failures
):
  """Its best arm, as often as with numpy's draws and scipy's densities."""
  draw, runs = np.random.default_rng(0), 20_000
  p = draw.beta(successes, failures, (runs, num_samples, 2))
  log_density = scipy.stats.beta.logpdf(p, successes, failures).sum(-1)
  likeliest = p[np.arange(runs), log_density.argmax(1)]
  expected = likeliest.argmax(1).mean()
  found = _frequencies(likeliest_thompson(2, num_samples), successes, failures)
  error = np.sqrt(expected * (1 - expected) * (1 / DRAWS + 1 / runs))
  assert abs(found[1] / DRAWS - expected) < 4 * error


def test_likeliest_sample_needs_a_sample():
  with pytest.raises(ValueError, match="^num_samples=0: must be 1 or more"):
    likeliest_thompson(2, 0)


INSTANCES = 1000
# Mean rewards of 1000 instances (Duan et al. 2016, table 1), 5 arms, after 10
# and after 100 pulls.
PUBLISHED = {
  "random": (random_player(5), {10: 5.0, 100: 49.9}),
  "thompson": (thompson(5), {10: 5.7, 100: 74.7}),
  "ucb1": (ucb1(5, 0.2), {10: 6.7, 100: 78.0}),
  "likeliest_thompson": (likeliest_thompson(5, 7), {10: 6.5, 100: 77.9}),
  "greedy": (greedy(5, ties="first"), {10: 6.6, 100: 74.8}),
}


@functools.cache
def _trials(name):
  tasks, player = bandits(5, 100), PUBLISHED[name][0]
  # Sampling of Beta distributions is slow.
  instances = 300 if "thompson" in name else INSTANCES
  keys = jax.random.split(jax.random.key(1), instances)
  return jax.jit(jax.vmap(lambda key: play(player, tasks, key)))(keys)


def _assert_as_published(totals, published):
  """Both are means; 0.3% is for the published one's only decimal."""
  error = totals.std() * np.sqrt(1 / len(totals) + 1 / 1000)
  assert abs(totals.mean() - published) < 4 * error + 0.003 * published


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_mean_rewards_are_the_published_ones(name):
  """None of them knows how long it lives: 100 pulls begin as 10 do."""
  rewards = np.asarray(_trials(name).steps.reward, np.float64)[:, 1:]
  for num_pulls, published in PUBLISHED[name][1].items():
    _assert_as_published(rewards[:, :num_pulls].sum(axis=1), published)


@pytest.mark.parametrize(
  "num_pulls, discount, published", [(10, 0.9, 6.6), (100, 0.99, 78.3)]
)
def test_mean_rewards_by_gittins_indices_are_the_published_ones(
  num_pulls, discount, published
):
  tasks = bandits(5, num_pulls)
  player = gittins(5, _indices(num_pulls, discount))
  run = jax.jit(jax.vmap(lambda key: play(player, tasks, key).rewards))
  rewards = run(jax.random.split(jax.random.key(2), INSTANCES))
  _assert_as_published(np.asarray(rewards, np.float64).sum(axis=1), published)


def test_memories_of_a_trial_are_the_counts_of_what_was_pulled_before():
  trial = jax.tree.map(np.asarray, _trials("greedy"))
  arms = np.eye(5)[trial.steps.action[:, 1:]]
  reward = trial.steps.reward[:, 1:, None]
  # The last memory is that before the last step, which nobody took in.
  for found, of_step in (
    (trial.memories.successes, arms * reward),
    (trial.memories.failures, arms * (1 - reward)),
  ):
    np.testing.assert_array_equal(found[:, :2], 1)
    counts = 1 + np.cumsum(of_step, axis=1)
    np.testing.assert_array_equal(found[:, 2:], counts[:, :-1])


@pytest.mark.parametrize("epsilon", [-0.1, 2.0, float("nan")])
@pytest.mark.parametrize(
  "build",
  [
    lambda e: players.epsilon_greedy(3, e),
    lambda e: players.mdp_epsilon_greedy(players.Sizes(), e),
    lambda e: players.tabularl_epsilon_greedy(players.Sizes(), e),
  ],
)
def test_an_epsilon_that_is_no_probability_is_named(build, epsilon):
  with pytest.raises(ValueError, match="^epsilon=.* must be 0 to 1"):
    build(epsilon)
