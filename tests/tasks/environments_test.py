"""What environments can do and show, and the errors for what is no number."""

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from metajax.players import random_player
from metajax.tasks.environment_tasks import environment_tasks
from metajax.tasks.environments import METHODS
from metajax.tasks.trials import play, trials, with_last_observation


class Walk:
  """Its place is what it is told; `made` by other attributes, too."""

  default_params = 2

  def reset_env(self, key, params):
    return jnp.zeros(2), jnp.int32(0)

  def step_env(self, key, state, action, params):
    place = jnp.stack([jnp.float32(x) for x in jax.tree.leaves(action)])
    return jnp.resize(place, 2), state + 1, place.sum(), False, {}

  def is_truncated(self, state, params):
    return state >= 5


def made(**attributes):
  return type("Walk", (Walk,), attributes)()


@pytest.mark.parametrize("method", METHODS)
def test_environment_of_vectors_without_a_method_is_named(method):
  space = spaces.Box(-1, 1, (2,))
  environment = made(action_space=lambda self, params: space, **{method: None})
  with pytest.raises(ValueError, match=f"Walk: has no method {method}; trials"):
    environment_tasks(environment, 5)


def _message(environment, **changes):
  with pytest.raises(ValueError) as error:
    trials(environment, 5, **changes)
  message = str(error.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  "name",
  [
    "Pendulum-v1",
    "MountainCarContinuous-v0",
    "PointRobot-misc",
    "Reacher-misc",
    "Swimmer-misc",
  ],
)
def test_continuous_actions_need_a_table(name):
  environment, params = gymnax.make(name)
  message = _message(environment)
  assert message.startswith(f"environment={name}: its actions are Box(")
  assert "actions=an array [num_actions, ...]" in message
  shape = environment.action_space(params).shape
  table = np.linspace(-0.1, 0.1, 3 * shape[0], dtype=np.float32)
  tasks = trials(environment, 5, actions=table.reshape(3, *shape))
  assert tasks.num_actions == 3
  steps = jax.eval_shape(
    lambda key: play(random_player(3), tasks, key).steps, jax.random.key(0)
  )
  assert steps.reward.shape == (6,)


@pytest.mark.parametrize(
  "space",
  [
    spaces.Box(jnp.zeros((2, 3)), jnp.ones((2, 3)), (2, 3)),
    spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
    spaces.Dict({"a": spaces.Discrete(2)}),
    gymnasium.spaces.MultiDiscrete([2, 3]),
    gymnasium.spaces.MultiBinary(3),
    gymnasium.spaces.Discrete(3, start=1),
  ],
  ids=lambda space: type(space).__name__,
)
def test_actions_of_other_spaces_need_a_table(space):
  """Also where `num_actions` says a number, and where the space is a method."""
  for given in (space, lambda self, params: space, lambda self: space):
    environment = made(num_actions=6, action_space=given)
    assert "environment=Walk: its actions are" in _message(environment)


@pytest.mark.parametrize(
  "attributes",
  [
    {"num_actions": 3},
    {"num_actions": np.int64(3)},
    {"num_actions": property(lambda self: 3)},
    {"num_actions": lambda self: 3},
    {"num_actions": lambda self, params: params + 1},
    {"action_space": lambda self, params: spaces.Discrete(params + 1)},
    {"action_space": gymnasium.spaces.Discrete(3)},
    {"num_actions": 3, "action_space": lambda self, p=None: spaces.Discrete(3)},
  ],
)
def test_number_of_actions_is_told_in_any_way(attributes):
  assert trials(made(**attributes), 5).num_actions == 3


@pytest.mark.parametrize(
  "attributes, message",
  [
    ({}, "neither action_space nor num_actions says how many"),
    ({"num_actions": 0}, "neither action_space nor num_actions says"),
    ({"num_actions": 2.5}, "neither action_space nor num_actions says"),
    (
      {"num_actions": 2, "action_space": spaces.Discrete(3)},
      "num_actions=2, but its actions are Discrete",
    ),
    ({"num_actions": 2, "is_truncated": None}, "has no method is_truncated"),
  ],
)
def test_environment_that_does_not_say_its_actions_is_named(
  attributes, message
):
  assert f"environment=Walk: {message}" in _message(made(**attributes))


@pytest.mark.parametrize(
  "actions, message",
  [
    (jnp.float32(1), r"actions: arrays of shapes [()]; must be [num_actions"),
    (jnp.zeros((0, 2)), "actions: arrays of shapes [(0, 2)]; must be"),
    ((jnp.zeros(2), jnp.zeros(3)), "actions: arrays of shapes [(2,), (3,)]"),
    (jnp.zeros(4), "actions: (4,), but an action of Walk has shape (2,)"),
    (
      jnp.zeros((4, 3)),
      "actions: (4, 3), but an action of Walk has shape (2,)",
    ),
  ],
)
def test_table_that_does_not_fit_is_named(actions, message):
  environment = made(action_space=spaces.Box(-1, 1, (2,)))
  assert message in _message(environment, actions=actions)


def test_table_of_numbers_that_are_no_actions_is_named():
  environment = made(action_space=spaces.Discrete(3))
  assert "Walk has the actions 0 to 2" in _message(environment, actions=[0, 3])
  assert trials(environment, 5, actions=[2, 0]).num_actions == 2


@pytest.mark.parametrize(
  "actions", [[2.0, 5.0, 7.0], np.array([2.0, 5.0, 7.0])]
)
def test_table_may_be_of_numpy_or_a_list(actions):
  _check_looked_up(trials(made(), 5, actions=actions), {2.0, 5.0, 7.0})


def test_table_may_be_a_tree():
  pairs = {"x": np.array([1.0, 2.0]), "y": jnp.array([10.0, 20.0])}
  space = spaces.Dict({"x": spaces.Box(0, 9, ()), "y": spaces.Box(0, 99, ())})
  tasks = trials(made(action_space=space), 5, actions=pairs)
  _check_looked_up(tasks, {11.0, 22.0})


def _check_looked_up(tasks, rewards):
  assert tasks.num_actions == len(rewards)
  player = random_player(tasks.num_actions)
  run = jax.vmap(lambda key: play(player, tasks, key).rewards)
  found = run(jax.random.split(jax.random.key(0), 8))
  assert set(np.unique(found)) == rewards


def test_numbers_of_a_discrete_space_are_seen_one_hot():
  """State 3 of a lake is no three times what state 1 is."""
  environment, _ = gymnax.make("FrozenLake-misc")
  tasks = trials(environment, 20)
  task, observation = tasks.reset(jax.random.key(0))
  np.testing.assert_array_equal(observation, np.eye(16)[0])
  seen = play(random_player(4), tasks, jax.random.key(1)).steps.observation
  assert seen.shape == (21, 16)
  np.testing.assert_array_equal(seen.sum(-1), 1)
  assert np.any(seen[:, 0] == 0)
  del task


def test_trees_of_observations_are_seen_as_one_vector():
  def step_env(self, key, state, action, params):
    seen = {"a": state, "b": (jnp.ones((2, 1)), action > 0)}
    return seen, state + 1, 0.0, False, {}

  environment = made(
    num_actions=2,
    reset_env=lambda self, key, params: (
      {"a": jnp.int32(9), "b": (jnp.zeros((2, 1)), jnp.bool_(True))},
      jnp.int32(0),
    ),
    step_env=step_env,
  )
  tasks = with_last_observation(trials(environment, 3))
  steps = play(random_player(2), tasks, jax.random.key(0)).steps
  np.testing.assert_array_equal(steps.observation[0], [9, 0, 0, 1] + [0] * 4)
  for t in (1, 2, 3):
    np.testing.assert_array_equal(
      steps.observation[t, :4], [t - 1, 1, 1, steps.action[t]]
    )
    np.testing.assert_array_equal(
      steps.observation[t, 4:], steps.observation[t - 1, :4]
    )
