"""Playable tasks: their trials, their adapters, and what is refused."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.mlp import MLP
from metajax.players import random_player
from metajax.policies import (
  categorical_policy,
  gaussian_policy,
  play_episodes,
  policy_learner,
)
from metajax.tasks.bandits import bandit_tasks, bandits
from metajax.tasks.environment_tasks import environment_tasks
from metajax.tasks.gridworld import gridworld
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import (
  Continuous,
  Discrete,
  discretized,
  playable,
  same_start,
  told,
)
from metajax.tasks.tabular_mdp import mdp_tasks, tabular_mdps
from metajax.tasks.trials import play, trials_of

WAYS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
HORIZON = 5


@functools.cache
def _drawn():
  """Begins at a number in [0, 1), and shows it; never ends by itself."""

  def begin(task, rng):
    state = jax.random.uniform(rng)
    return state, jnp.stack([task, state])

  return playable(
    lambda rng: jax.random.uniform(rng),
    begin,
    lambda task, state, action, rng: (
      *(state + action, jnp.stack([task, state + action])),
      *(task * action, jnp.array(False)),
    ),
    actions=Discrete(2),
    horizon=HORIZON,
  )


def _play(tasks):
  player = random_player(tasks.num_actions)
  return jax.device_get(
    jax.jit(lambda key: play(player, tasks, key).steps)(jax.random.key(0))
  )


def test_trial_of_a_walk_is_that_of_a_loop_in_numpy():
  """Walks in the plane, cut at the horizon; the goal is that of the trial."""
  tasks = trials_of(discretized(navigation(HORIZON), WAYS), 13)
  assert (tasks.num_actions, tasks.num_steps) == (4, 13)
  key = jax.random.key(0)
  task, _ = tasks.reset(jax.random.split(key)[0])  # As `play` does.
  goal, steps = np.float64(task.params), _play(tasks)
  place = np.zeros(2)
  for t in range(13):
    place = place + 0.1 * WAYS[steps.action[t + 1]]
    away = np.linalg.norm(place - goal)
    np.testing.assert_allclose(steps.reward[t + 1], -away, rtol=1e-4)
    ended = (t + 1) % HORIZON == 0
    assert steps.ended[t + 1] == ended
    place = np.zeros(2) if ended else place
    np.testing.assert_allclose(steps.observation[t + 1], place, atol=1e-6)
  assert len(np.unique(steps.action[1:])) > 1


@pytest.mark.slow
@pytest.mark.parametrize("new_starts", [True, False])
def test_episodes_begin_anew_or_as_the_first(new_starts):
  tasks = trials_of(_drawn(), 4 * HORIZON + 1, new_starts=new_starts)
  steps = _play(tasks)
  starts = steps.observation[::HORIZON, 1]
  assert len(np.unique(starts)) == (5 if new_starts else 1)
  assert len(np.unique(steps.observation[:, 0])) == 1  # One task.


def test_same_start_is_drawn_with_the_task():
  tasks = same_start(_drawn())
  first, second = (tasks.draw(jax.random.key(i)) for i in range(2))
  for task in (first, second):
    seen = [tasks.begin(task, jax.random.key(i))[1] for i in (5, 6)]
    np.testing.assert_array_equal(*seen)
    assert seen[0][0] == task[0]
  assert first[1][0] != second[1][0]


def test_told_tasks_show_the_goal_and_nothing_else_changes():
  plain, shown = navigation(HORIZON), told(navigation(HORIZON))
  goal = plain.draw(jax.random.key(0))
  state, seen = shown.begin(goal, jax.random.key(1))
  np.testing.assert_array_equal(seen, [0, 0, *goal])
  new, seen, *rest = shown.step(goal, state, WAYS[0], jax.random.key(2))
  _, place, *expected = plain.step(goal, state, WAYS[0], jax.random.key(2))
  np.testing.assert_array_equal(seen, [*place, *goal])
  np.testing.assert_array_equal(new, place)
  np.testing.assert_array_equal(rest, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
  "tasks, as_trials, name",
  [
    (bandit_tasks(3, 4), bandits(3, 4), "probabilities"),
    (mdp_tasks(horizon=4), tabular_mdps(2, horizon=4), "means"),
  ],
  ids=["bandit", "mdp"],
)
def test_one_definition_serves_trials_and_parallel_episodes(
  tasks, as_trials, name
):
  """The same task, and the same rewards in the mean over many episodes."""
  key = jax.random.key(3)
  begun, _ = as_trials.reset(key)
  task = tasks.draw(jax.random.split(key)[0])
  np.testing.assert_array_equal(
    getattr(begun.params, name), getattr(task, name)
  )
  # Logits of zero choose as the random player does.
  number = tasks.actions.number
  policy = categorical_policy(MLP(number, ()), tasks.actions)
  _, seen = tasks.begin(task, key)
  params = jax.tree.map(
    jnp.zeros_like, policy.init(jax.random.key(0), seen[None])
  )
  rollouts = play_episodes(policy, params, tasks, task, key, 3000)
  assert np.asarray(rollouts.mask).all()
  player = random_player(number)

  def one(key):
    fixed = as_trials._replace(reset=lambda rng: (begun, seen))
    return play(player, fixed, key).rewards[: tasks.horizon].sum()

  returns = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 3000))
  pairs = [np.asarray(x, np.float64) for x in (rollouts.returns, returns)]
  error = np.hypot(*(x.std() / len(x) ** 0.5 for x in pairs))
  assert abs(pairs[0].mean() - pairs[1].mean()) < 4 * error


@pytest.mark.slow
def test_environment_of_vectors_is_played_by_a_gaussian_policy():
  """Each step is the environment's own."""
  environment, params = gymnax.make("Pendulum-v1")
  tasks = environment_tasks(environment, 6)
  assert tasks.actions == Continuous(1)
  policy = gaussian_policy(MLP(1, (4,)), tasks.actions)
  task = tasks.draw(jax.random.key(0))
  weights = policy.init(jax.random.key(1), jnp.zeros((1, 3)))
  rollouts = play_episodes(policy, weights, tasks, task, jax.random.key(2), 3)
  seen = np.asarray(rollouts.observations)
  for e in range(3):
    angle = np.arctan2(seen[e, 0, 1], seen[e, 0, 0])
    state = environment.reset_env(jax.random.key(0), params)[1].replace(
      theta=angle, theta_dot=seen[e, 0, 2]
    )
    for t in range(5):
      found, state, reward, *_ = environment.step_env(
        jax.random.key(0), state, rollouts.actions[e, t], params
      )
      np.testing.assert_allclose(seen[e, t + 1], found, rtol=1e-3, atol=1e-4)
      np.testing.assert_allclose(rollouts.rewards[e, t], reward, rtol=1e-3)


@pytest.mark.parametrize(
  "make",
  [
    gridworld,
    lambda: bandit_tasks(2, 3),
    mdp_tasks,
    lambda: discretized(navigation(horizon=HORIZON), WAYS[:, :2]),
  ],
)
def test_episodes_can_be_traced_with_64_bits(make):
  """A start in another dtype than the steps would stop every trial."""
  with jax.enable_x64(True):
    tasks = trials_of(make(), 10)
    player = random_player(tasks.num_actions)
    steps = jax.eval_shape(
      lambda key: play(player, tasks, key).steps, jax.random.key(0)
    )
  assert steps.observation.dtype == np.float32 and len(steps.reward) == 11


def test_actions_that_do_not_fit_are_one_line():
  """Continuous tasks for a discrete learner, and the reverse."""
  for build, message in {
    lambda: trials_of(navigation(), 5): (
      "tasks: their actions are Continuous(size=2), but players of trials "
      "choose from Discrete(number)"
    ),
    lambda: gaussian_policy(MLP(2), bandit_tasks(2, 3).actions): (
      "actions=Discrete(number=2): a Gaussian policy needs Continuous"
    ),
    lambda: categorical_policy(MLP(2), navigation().actions): (
      "actions=Continuous(size=2): a categorical policy needs Discrete"
    ),
    lambda: policy_learner(
      gaussian_policy(MLP(2), Continuous(2)), bandit_tasks(2, 3)
    ): "policy: chooses from Continuous(size=2), but the tasks have Discrete",
    lambda: discretized(bandit_tasks(2, 3), WAYS): (
      "table: an array (4, 2) for tasks of Discrete(number=2)"
    ),
    lambda: discretized(navigation(), WAYS[:, :1]): (
      "table: an array (4, 1) for tasks of Continuous(size=2)"
    ),
    lambda: trials_of(bandit_tasks(2, 3), 0): "num_steps=0: must be 1 or more",
  }.items():
    with pytest.raises(ValueError) as error:
      build()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
