"""Playable tasks: their trials, their adapters, and what is refused."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.models.mlp import MLP
from metajax.models.recurrent import recurrent
from metajax.off_policy import play_episode
from metajax.players import random_player
from metajax.policies import (
  PPO,
  categorical_policy,
  gaussian_policy,
  play_episodes,
  policy_learner,
  policy_trainer,
  ppo_trainer,
)
from metajax.replay import Objective, Replay, replay_trainer
from metajax.tasks.bandits import bandit_tasks, bandits
from metajax.tasks.environment_tasks import environment_tasks
from metajax.tasks.gridworld import gridworld
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import (
  Continuous,
  Discrete,
  discretized,
  lasting,
  playable,
  same_start,
  told,
)
from metajax.tasks.tabular_mdp import mdp_tasks, tabular_mdps
from metajax.tasks.trials import Player, play, trials_of

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


def test_episodes_that_last_are_those_of_the_tasks_then_nothing():
  """Every walk straight to the goal ends, and then rests to the horizon."""
  tasks = navigation(HORIZON * 3)
  longer = lasting(tasks)
  key, goal = jax.random.key(0), jnp.float32([0.2, -0.1])
  pairs = [(tasks, *tasks.begin(goal, key)), (longer, *longer.begin(goal, key))]
  seen = []
  for _ in range(tasks.horizon):
    stepped = []
    for which, state, place in pairs:
      action = (goal - place) * 10
      state, place, reward, ended = which.step(goal, state, action, key)
      stepped.append((which, state, place, float(reward), bool(ended)))
    seen.append([s[2:] for s in stepped])
    pairs = [s[:3] for s in stepped]
  ends = [step[0][2] for step in seen]
  last = ends.index(True)
  assert last == 1
  for t, (own, other) in enumerate(seen):
    assert other[2] == (t == len(seen) - 1)
    if t <= last:
      np.testing.assert_array_equal(own[0], other[0])
      assert own[1] == other[1] < 0 or t == last
    else:
      np.testing.assert_array_equal(other[0], seen[last][1][0])
      assert other[1] == 0


def test_actions_that_do_not_fit_are_one_line():
  """Continuous tasks for a discrete learner, and the reverse."""
  for build, message in {
    lambda: trials_of(navigation(), 5).num_actions: (
      "tasks: their actions are Continuous(size=2), but this player chooses "
      "from Discrete(number)"
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


def _counted(**other):
  """Counts steps, and shows their number twice; ends after 3 of them.

  Args:
    **other: functions of what `begin` and `step` return, by its name.
  """

  def changed(name, x):
    return other.get(name, lambda x: x)(x)

  def step(task, state, action, rng):
    state = state + 1
    return (
      changed("state", state),
      changed("observation", jnp.full(2, state)),
      changed("reward", (action == task).astype(jnp.float32)),
      changed("ended", state >= 3),
    )

  return playable(
    lambda rng: jax.random.randint(rng, (), 0, 2),
    lambda task, rng: (
      changed("first_state", jnp.float32(0)),
      changed("first_observation", jnp.zeros(2)),
    ),
    step,
    actions=Discrete(2),
    horizon=HORIZON,
  )


def _rollouts(tasks):
  policy = categorical_policy(MLP(2, (4,)), tasks.actions)
  learner = policy_learner(policy, tasks)
  key = jax.random.key(0)
  return learner.play(learner.init(key), jnp.int32(1), key, 3)


WAYS_TO_PLAY = {
  "episodes": _rollouts,
  "trials": lambda tasks: _play(trials_of(tasks, 7)),
  "same_starts": lambda tasks: _play(trials_of(tasks, 7, new_starts=False)),
  "lasting": lambda tasks: _play(trials_of(lasting(tasks), 7)),
  "off_policy": lambda tasks: play_episode(
    tasks, jnp.int32(1), lambda seen, key: jnp.int32(0), jax.random.key(0)
  ),
}


@pytest.mark.parametrize("way", WAYS_TO_PLAY)
@pytest.mark.parametrize(
  "name, change, message",
  [
    ("reward", lambda x: x[None], r"reward has shape \(1,\), must be a scalar"),
    ("ended", lambda x: x[None], r"ended has shape \(1,\), must be a scalar"),
    ("ended", lambda x: x.astype(int), "ended is int32, must be bool"),
    ("ended", lambda x: x.astype(float), "ended is float32, must be bool"),
    ("reward", lambda x: {"r": x}, "reward must be one array"),
    (
      "state",
      lambda x: x.astype(jnp.complex64),
      r"the state is complex64 \(\), but that of begin is float32 \(\)",
    ),
    (
      "state",
      lambda x: x[None],
      r"the state is float32 \(1,\), but that of begin is float32 \(\)",
    ),
    ("state", lambda x: (x, x), "must be the same tree"),
    (
      "observation",
      lambda x: x[:1],
      r"the observation is float32 \(1,\), but that of begin is float32 \(2,",
    ),
    (
      "first_observation",
      lambda x: x.astype(int),
      r"the observation is float32 \(2,\), but that of begin is int32 \(2,",
    ),
    ("first_observation", lambda x: [x], "the observation must be one array"),
  ],
)
def test_what_tasks_return_wrongly_is_named(way, name, change, message):
  with pytest.raises(ValueError, match=message) as error:
    WAYS_TO_PLAY[way](_counted(**{name: change}))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", WAYS_TO_PLAY)
@pytest.mark.parametrize(
  "name, change",
  [
    ("reward", lambda x: x > 0),
    ("reward", lambda x: x.astype(int)),
    ("state", lambda x: x.astype(int)),
    ("observation", lambda x: x.astype(jnp.float16)),
    ("first_state", lambda x: 0.0),
  ],
)
def test_narrower_numbers_are_those_of_the_beginning(way, name, change):
  found = WAYS_TO_PLAY[way](_counted(**{name: change}))
  wanted = WAYS_TO_PLAY[way](_counted())
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
  "change", [lambda x: discretized(x, WAYS), same_start, lasting, told]
)
def test_trials_in_place_of_tasks_are_named(change):
  with pytest.raises(ValueError, match="^tasks: Trials given, must be Playab"):
    change(bandits(2, 3))


def test_results_of_other_lengths_are_named():
  tasks = _counted()
  short = tasks._replace(step=lambda *x: tasks.step(*x)[:3])
  alone = tasks._replace(begin=lambda *x: tasks.begin(*x)[1])
  for wrong, message in (
    (short, r"^step: must return \(state, observation, reward, ended\)"),
    (alone, r"^begin: must return \(state, observation\)"),
  ):
    for way in WAYS_TO_PLAY.values():
      with pytest.raises(ValueError, match=message):
        way(wrong)


def test_trials_and_playable_tasks_are_told_apart():
  playables, trials = _counted(), trials_of(_counted(), 7)
  policy = categorical_policy(MLP(2, (4,)), Discrete(2))
  learner = policy_learner(policy, playables)
  network = recurrent(2, units=4)
  for build, message in {
    lambda: policy_learner(policy, trials): "tasks: Trials given",
    lambda: trials_of(trials, 7): "tasks: Trials given",
    lambda: _policy_trainer(learner, trials): "tasks: Trials given",
    lambda: play(random_player(2), playables, jax.random.key(0)): (
      "tasks: PlayableTasks given, must be Trials; trials_of(tasks, num_steps)"
    ),
    lambda: _replay_trainer(network, playables): "tasks: PlayableTasks given",
    lambda: _ppo_trainer(network, playables): "tasks: PlayableTasks given",
    lambda: policy_learner(MLP(2), playables): "policy: MLP given, must be a",
    lambda: _policy_trainer(policy, playables): "learner: Policy given, must",
    lambda: _ppo_trainer(MLP(2), trials): "network: MLP given, must be a",
  }.items():
    with pytest.raises(ValueError) as error:
      build()
    assert str(error.value).startswith(message)


def _policy_trainer(learner, tasks):
  return policy_trainer(
    learner, tasks, optax.sgd(0.1), meta_batch=2, rng=jax.random.key(0)
  )


def _replay_trainer(network, tasks):
  return replay_trainer(
    network,
    tasks,
    optax.sgd(0.1),
    Objective(2, 7),
    Replay(actors=2, length=4, period=2, capacity=16, batch=4),
    rng=jax.random.key(0),
  )


def _ppo_trainer(network, tasks):
  return ppo_trainer(
    network, tasks, optax.sgd(0.1), PPO(actors=4), rng=jax.random.key(0)
  )


@pytest.mark.parametrize("action", [jnp.float32(1), jnp.zeros(1, int), 1 > 0])
def test_an_action_that_is_no_integer_is_named(action):
  player = Player(lambda: (), lambda memory, step, rng: (action, memory))
  with pytest.raises(ValueError, match="^player: its action is "):
    play(player, trials_of(_counted(), 7), jax.random.key(0))


@pytest.mark.parametrize("way", WAYS_TO_PLAY)
def test_a_state_may_have_a_random_key(way):
  tasks, key = _counted(), jax.random.key(0)

  def begin(task, rng):
    state, seen = tasks.begin(task, rng)
    return (state, key), seen

  def step(task, state, action, rng):
    new, *rest = tasks.step(task, state[0], action, rng)
    return (new, jax.random.fold_in(state[1], 1)), *rest

  with_key = tasks._replace(begin=begin, step=step)
  found, wanted = (WAYS_TO_PLAY[way](x) for x in (with_key, tasks))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
