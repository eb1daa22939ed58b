"""Trials: what is recorded of them, and one task through all its episodes."""

from typing import NamedTuple

import chex
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.players import random_player
from metajax.tasks.bandits import BernoulliArms, bandits
from metajax.tasks.tabular_mdp import TabularMDP, tabular_mdps
from metajax.tasks.trials import (
  Player,
  Step,
  play,
  trials,
  with_last_observation,
)

NUM_STEPS = 14
NUM_TRIALS = 32


class Place(NamedTuple):
  time: int
  place: int


def _move(begin, place, action):
  return (3 * place + action + begin) % 7


class Walk:
  """Places 0, ..., 6; over in place 5, or after 4 steps wherever it is."""

  num_actions = 3
  default_params = 2  # Where it begins.

  def reset_env(self, key, params):
    return jnp.array([params, 0]), Place(jnp.int32(0), jnp.int32(params))

  def step_env(self, key, state, action, params):
    place = _move(params, state.place, action)
    state = Place(state.time + 1, place)
    return jnp.array([place, state.time]), state, place / 2, place == 5, {}

  def is_truncated(self, state, params):
    return state.time >= 4


def _take_in(trace, place, time, action, twice_reward, ended, first):
  return (
    5 * trace
    + place
    + 2 * time
    + 3 * action
    + 7 * twice_reward
    + 13 * ended
    + 17 * first
  ) % 101


class Memory(NamedTuple):
  acts: int
  trace: int


def _act_on_all_seen(memory, step, rng):
  place, time = step.observation.astype(jnp.int32)
  twice = (2 * step.reward).astype(jnp.int32)
  trace = _take_in(
    memory.trace, place, time, step.action, twice, step.ended, step.first
  )
  return trace % 3, Memory(memory.acts + 1, trace)


WALKER = Player(lambda: Memory(jnp.int32(0), jnp.int32(4)), _act_on_all_seen)


def _walk_by_hand(begin, num_steps):
  """Returns steps and memories, and how many episodes ended in either way."""
  place, time, acts, trace = begin, 0, 0, 4
  step = ([begin, 0], 0, 0.0, False, True)
  steps, memories, arrived, out_of_time = [step], [(0, 4)], 0, 0
  for _ in range(num_steps):
    (seen, seen_time), action, reward, ended, first = step
    trace = _take_in(
      trace, seen, seen_time, action, int(2 * reward), ended, first
    )
    acts += 1
    action = trace % 3
    place, time = _move(begin, place, action), time + 1
    reward, ended = place / 2, place == 5 or time == 4
    arrived += place == 5
    out_of_time += place != 5 and time == 4
    if ended:
      place, time = begin, 0
    step = ([place, time], action, reward, ended, False)
    steps.append(step)
    memories.append((acts, trace))
  columns = [np.array(c) for c in zip(*steps, strict=True)]
  return Step(*columns), np.array(memories).T, arrived, out_of_time


@pytest.fixture(scope="module")
def walk():
  tasks = trials(Walk(), NUM_STEPS)
  assert (tasks.num_actions, tasks.num_steps) == (3, NUM_STEPS)
  return jax.jit(lambda key: play(WALKER, tasks, key))(jax.random.key(0))


def test_trial_is_what_was_seen_in_order(walk):
  """Steps, rewards and the memories before each step, by hand."""
  steps, memories, arrived, out_of_time = _walk_by_hand(2, NUM_STEPS)
  assert arrived and out_of_time, "the walk shows too little"
  assert len(np.unique(steps.action)) == 3
  for name, found, expected in zip(
    Step._fields, walk.steps, steps, strict=True
  ):
    np.testing.assert_array_equal(found, expected, err_msg=name)
  for name, found, expected in zip(
    Memory._fields, walk.memories, memories, strict=True
  ):
    np.testing.assert_array_equal(found, expected, err_msg=name)
  np.testing.assert_array_equal(walk.rewards, steps.reward[1:])


def test_steps_are_one_more_than_actions_and_only_one_is_first(walk):
  for leaf in jax.tree.leaves(walk):
    assert leaf.shape[0] == NUM_STEPS + 1
  assert walk.rewards.shape == (NUM_STEPS,)
  np.testing.assert_array_equal(np.flatnonzero(walk.steps.first), [0])
  for leaf in (walk.steps.action, walk.steps.reward, walk.steps.ended):
    assert leaf[0] == 0
  assert [x.dtype for x in walk.steps] == [
    jnp.float32,
    jnp.int32,
    jnp.float32,
    bool,
    bool,
  ]


def test_a_step_that_ended_an_episode_shows_the_beginning_of_the_next(walk):
  ended = np.asarray(walk.steps.ended)
  np.testing.assert_array_equal(
    walk.steps.observation[ended], [[2, 0]] * ended.sum()
  )
  # Elsewhere time goes on.
  assert np.all(walk.steps.observation[1:, 1][~ended[1:]] > 0)


def test_goal_of_a_maze_and_parameters_are_those_of_the_trial():
  """The maze is made to show its goal and what the goal is worth."""

  class ShownMaze(type(gymnax.make("MetaMaze-misc")[0])):
    def get_obs(self, state, params, key=None):
      return jnp.hstack([state.goal, params.reward, state.pos])

  environment = ShownMaze()
  default = environment.default_params

  def sample_params(rng):
    return default.replace(
      reward=jax.random.uniform(rng), max_steps_in_episode=5
    )

  tasks = trials(environment, 17, sample_params=sample_params)
  run = jax.vmap(lambda key: play(random_player(4), tasks, key))
  steps = jax.jit(run)(jax.random.split(jax.random.key(1), NUM_TRIALS)).steps
  task, position = np.split(np.asarray(steps.observation), [3], axis=-1)
  assert np.all(task == task[:, :1])
  # Three episodes or more: some end early, at the goal.
  assert np.all(np.asarray(steps.ended).sum(axis=1) >= 3)
  # In every episode the player begins in the middle and then moves.
  begins = np.asarray(steps.ended | steps.first)
  np.testing.assert_array_equal(
    position[begins], [environment.center_position] * begins.sum()
  )
  assert len(np.unique(position.reshape(-1, 2), axis=0)) > 5
  # Goals are among 65 places, and what they are worth is real.
  goals, worth = task[:, 0, :2], task[:, 0, 2]
  assert len(np.unique(goals, axis=0)) > NUM_TRIALS / 2
  assert len(np.unique(worth)) == NUM_TRIALS
  reached = np.asarray(steps.reward) > 0
  assert reached.any()
  np.testing.assert_array_equal(
    np.asarray(steps.reward)[reached], task[..., 2][reached]
  )


def test_arms_of_a_bandit_are_those_of_the_trial():
  """One arm always pays and the other never; an episode is 3 pulls."""
  environment, params = gymnax.make("BernoulliBandit-misc")
  params = params.replace(reward_prob=0.0, max_steps_in_episode=3)
  tasks = trials(environment, 12, sample_params=lambda rng: params)

  def act(memory, step, rng):
    return jnp.int32(0), memory

  run = jax.vmap(lambda key: play(Player(lambda: (), act), tasks, key))
  trial = jax.jit(run)(jax.random.split(jax.random.key(2), NUM_TRIALS))
  ended = np.asarray(trial.steps.ended)
  expected = (np.arange(13) % 3 == 0) & (np.arange(13) > 0)
  np.testing.assert_array_equal(ended, np.tile(expected, (NUM_TRIALS, 1)))
  rewards = np.asarray(jax.vmap(lambda t: t.rewards)(trial))
  assert np.all(rewards == rewards[:, :1])
  # P(fewer than 5 of 32 of either kind) = 2e-5.
  assert 5 <= rewards[:, 0].sum() <= NUM_TRIALS - 5


def test_actions_are_looked_up_in_the_table():
  """A robot goes where the table points, action by action."""
  environment, params = gymnax.make("PointRobot-misc")
  # No goal is ever reached; then the robot would be put elsewhere.
  params = params.replace(goal_radius=-1.0, max_steps_in_episode=8)
  table = np.array(
    [[0.1, 0.0], [0.0, 0.05], [-0.02, 0.03], [0.0, -0.1], [-0.1, -0.1]],
    np.float32,
  )
  tasks = trials(
    environment, 20, sample_params=lambda rng: params, actions=jnp.array(table)
  )
  assert tasks.num_actions == 5
  trial = jax.jit(lambda key: play(random_player(5), tasks, key))(
    jax.random.key(3)
  )
  action = np.asarray(trial.steps.action[1:])
  goes_on = ~np.asarray(trial.steps.ended[1:])
  position = np.asarray(trial.steps.observation[:, :2])
  assert set(action[goes_on]) == set(range(5))
  np.testing.assert_allclose(
    np.diff(position, axis=0)[goes_on], table[action][goes_on], atol=1e-6
  )
  # Both episodes that are over are followed by one that begins as they did.
  np.testing.assert_array_equal(np.flatnonzero(~goes_on), [7, 15])
  np.testing.assert_array_equal(position[[8, 16]], position[[0, 0]])


def test_vmap_over_keys_is_a_loop():
  tasks = bandits(2, 12)

  def run(key):
    return play(random_player(2), tasks, key)

  keys = jax.random.split(jax.random.key(4), 3)
  together, one = jax.jit(jax.vmap(run))(keys), jax.jit(run)
  alone = [one(key) for key in keys]
  stacked = jax.tree.map(lambda *xs: np.stack(xs), *alone)
  jax.tree.map(np.testing.assert_array_equal, together, stacked)
  assert (
    len({t.steps.action.tobytes() for t in map(jax.device_get, alone)}) == 3
  )


@pytest.mark.parametrize("num_steps", [0, -1])
def test_a_trial_without_steps_is_named(num_steps):
  with pytest.raises(ValueError, match=f"^num_steps={num_steps}: must be"):
    trials(Walk(), num_steps)


def test_what_is_no_player_is_named():
  with pytest.raises(ValueError, match="^player: function given, must be a Pl"):
    play(random_player, bandits(2, 3), jax.random.key(0))


def test_last_observation_is_that_of_the_step_before():
  """And nothing else of the task changes."""
  tasks = trials(Walk(), NUM_STEPS)
  player = random_player(tasks.num_actions)
  key = jax.random.key(4)
  plain = play(player, tasks, key).steps
  both = play(player, with_last_observation(tasks), key).steps
  now, last = np.split(np.asarray(both.observation), 2, axis=-1)
  np.testing.assert_array_equal(now, plain.observation)
  np.testing.assert_array_equal(last[0], 0)
  np.testing.assert_array_equal(last[1:], plain.observation[:-1])
  for name in ("action", "reward", "ended", "first"):
    np.testing.assert_array_equal(getattr(both, name), getattr(plain, name))


def _reset_in_every_step(tasks, environment, new_starts=False):
  """The trials, as they were when each step began an episode, to choose it."""

  def reset(rng):
    params_key, reset_key = jax.random.split(rng)
    params = tasks.reset(rng)[0].params
    del params_key
    later_key, number = reset_key, jnp.int32(0)
    if new_starts:
      reset_key, later_key = jax.random.split(reset_key)
    observation, state = environment.reset_env(reset_key, params)
    return (params, later_key, number, state), observation

  def step(task, action, rng):
    params, later_key, number, state = task
    reset_key = later_key
    if new_starts:
      reset_key = jax.random.fold_in(later_key, number)
    observation, state, reward, terminated, _ = environment.step_env(
      rng, state, action, params
    )
    ended = terminated | environment.is_truncated(state, params)
    observation, state = jax.tree.map(
      lambda new, old: jnp.where(ended, new, old),
      environment.reset_env(reset_key, params),
      (observation, state),
    )
    task = params, later_key, number + ended, state
    return task, observation, reward, ended

  return tasks._replace(reset=reset, step=step)


CARTPOLE = gymnax.make("CartPole-v1")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  "tasks, environment, new_starts",
  [
    (bandits(3, 12), BernoulliArms(3), False),
    (tabular_mdps(3, horizon=4), TabularMDP(10, 5), False),
    (trials(CARTPOLE, 40), CARTPOLE, False),
    (trials(CARTPOLE, 40, new_starts=True), CARTPOLE, True),
  ],
  ids=["bandit", "mdp", "cartpole", "new_starts"],
)
def test_same_key_is_the_same_trial_as_with_a_reset_in_every_step(
  tasks, environment, new_starts
):
  """Published results are of these trials."""
  player = random_player(tasks.num_actions)
  keys = jax.random.split(jax.random.key(5), 4)

  def run(tasks):
    return jax.jit(jax.vmap(lambda key: play(player, tasks, key).steps))(keys)

  written_out = _reset_in_every_step(tasks, environment, new_starts)
  found, before = run(tasks), run(written_out)
  # Two programs round the motion of a cart differently. Starts of other keys
  # would differ by 0.01 and more.
  chex.assert_trees_all_close(found, before, rtol=0, atol=1e-6)
  assert len(np.unique(found.reward)) > 1 or np.any(found.ended)


def test_a_step_begins_no_episode():
  """What an episode begins with is drawn with the task."""
  begun = []

  class Counted(Walk):
    def reset_env(self, key, params):
      begun.append(key)
      return super().reset_env(key, params)

  tasks = trials(Counted(), NUM_STEPS)
  task, _ = tasks.reset(jax.random.key(0))
  assert len(begun) == 1
  jax.jit(tasks.step)(task, jnp.int32(0), jax.random.key(1))
  assert len(begun) == 1


RUNS = []


class Drawn(Walk):
  """Begins at a place in [0, 1), and is over after 3 steps."""

  def reset_env(self, key, params):
    jax.debug.callback(lambda: RUNS.append(0))
    place = jax.random.uniform(key)
    return jnp.stack([place, 0.0]), Place(jnp.int32(0), place)

  def step_env(self, key, state, action, params):
    state = Place(state.time + 1, state.place)
    return jnp.array([state.place, state.time]), state, 0.0, False, {}

  def is_truncated(self, state, params):
    return state.time >= 3


def _starts(player, new_starts, keys):
  """Where the 5 episodes of 3 steps begin, `[..., 5]`."""
  tasks = trials(Drawn(), 14, new_starts=new_starts)
  run = lambda key: play(player, tasks, key).steps  # noqa: E731
  for _ in range(jnp.ndim(keys)):
    run = jax.vmap(run)
  places = np.asarray(jax.jit(run)(keys).observation[..., 0])
  # Within an episode the place is the same.
  assert np.all(places == np.repeat(places[..., ::3], 3, axis=-1))
  return places[..., ::3]


def test_new_starts_are_drawn_for_every_episode():
  """Uniformly, and none hangs together with the one before."""
  keys = jax.random.split(jax.random.key(6), 40)
  starts = _starts(random_player(3), True, keys)
  assert len(np.unique(starts)) == starts.size
  assert scipy.stats.kstest(starts.ravel(), "uniform").pvalue > 0.01
  # The standard deviation is 0.08.
  assert (
    abs(np.corrcoef(starts[:, :-1].ravel(), starts[:, 1:].ravel())[0, 1]) < 0.25
  )
  same = _starts(random_player(3), False, keys)
  np.testing.assert_array_equal(same, same[:, :1] * np.ones(5))


WALKER_AT_REST = Player(
  lambda: (), lambda memory, step, rng: (jnp.int32(0), ())
)


@pytest.mark.slow
def test_new_starts_are_drawn_only_in_steps_that_end_an_episode():
  """Under vmap too, and under one in another: 4 of 14 steps do."""
  keys = jax.random.split(jax.random.key(6), 40)[:6]
  expected = _starts(random_player(3), True, keys)
  for given in (keys, keys.reshape(2, 3), keys[5]):
    RUNS.clear()
    starts = _starts(WALKER_AT_REST, True, given)
    jax.effects_barrier()
    assert len(RUNS) == 1 + 4
    # Whatever is played, and however many at once.
    like = expected[5] if given.ndim == 0 else expected
    np.testing.assert_array_equal(starts, like.reshape(starts.shape))


@pytest.mark.parametrize("new_starts", [False, True])
def test_no_key_is_used_twice(new_starts):
  """JAX's own check; under vmap it finds fault with any scan over keys."""
  tasks = trials(Drawn(), 5, new_starts=new_starts)
  with jax.debug_key_reuse(True):
    jax.jit(lambda key: play(random_player(3), tasks, key).rewards)(
      jax.random.key(8)
    )
