"""Tasks of brax: the adapter on a body written out, and the real animals."""

import importlib.util
import os
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.mlp import MLP
from metajax.policies.policy import gaussian_policy
from metajax.policies.rollouts import play_episodes
from metajax.tasks import brax_tasks as adapter
from metajax.tasks import locomotion as module
from metajax.tasks.locomotion import ANT, CHEETAH, LOCOMOTION, locomotion
from metajax.tasks.playable import Continuous

KEY = jax.random.key(0)


class State(NamedTuple):
  """What brax's state has."""

  obs: Any
  done: Any
  metrics: Any


class Body:
  """Its velocity is the sum of the actions. Below -1.5 it breaks, above falls.

  It is no longer finite then.
  """

  action_size = 2

  def reset(self, rng):
    return State(jnp.zeros(3), jnp.zeros(()), {"x_velocity": jnp.zeros(())})

  def step(self, state, action):
    velocity = action.sum()
    seen = state.obs.at[0].add(velocity).at[1].set(velocity)
    seen = jnp.where(velocity < -1.5, jnp.nan, seen)
    done = jnp.float32(velocity > 1.5)
    return State(seen, done, {"x_velocity": velocity})


def _tasks(monkeypatch, name):
  made = []

  def environment(*arguments):
    made.append(arguments)
    return Body()

  monkeypatch.setattr(module, "brax_environment", environment)
  return locomotion(name, 7), made


@pytest.mark.parametrize("name", LOCOMOTION)
def test_rewards_are_those_of_the_published_code(name, monkeypatch):
  """Written out in numpy, with an action that is clipped."""
  tasks, made = _tasks(monkeypatch, name)
  assert tasks.actions == Continuous(2) and tasks.horizon == 7
  action = np.array([0.25, -3.0], np.float32)
  velocity, squared = 0.25 - 1.0, 0.25**2 + 1.0
  for task in (-1.0, 0.7):
    expected = {
      "cheetah_direction": task * velocity - 0.05 * squared,
      "cheetah_velocity": -abs(velocity - task) - 0.05 * squared,
      "ant_direction": task * velocity - 0.005 * squared + 0.05,
      "ant_velocity": 1 - abs(velocity - task) - 0.005 * squared + 0.05,
    }[name]
    state, seen = tasks.begin(jnp.float32(task), KEY)
    np.testing.assert_array_equal(seen, 0.0)
    _, seen, reward, ended = tasks.step(jnp.float32(task), state, action, KEY)
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    np.testing.assert_allclose(seen, [velocity, velocity, 0.0])
    assert not ended
  assert made == [("halfcheetah" if "cheetah" in name else "ant", "spring")]


def test_tasks_are_drawn_from_the_published_ranges(monkeypatch):
  keys = jax.random.split(KEY, 1000)
  for name, (animal, goal) in LOCOMOTION.items():
    tasks, _ = _tasks(monkeypatch, name)
    drawn = np.asarray(jax.vmap(tasks.draw)(keys))
    if goal == "direction":
      assert set(np.unique(drawn)) == {-1.0, 1.0}
      assert abs(drawn.mean()) < 5 / len(drawn) ** 0.5
    else:
      fastest = {CHEETAH: 2.0, ANT: 3.0}[animal]
      assert 0 <= drawn.min() and 0.98 * fastest < drawn.max() < fastest
      error = fastest / (12 * len(drawn)) ** 0.5
      assert abs(drawn.mean() - fastest / 2) < 5 * error


def test_a_fall_and_broken_physics_end_the_episode(monkeypatch):
  """With what was finite last, so that nothing after it is NaN."""
  tasks, _ = _tasks(monkeypatch, "ant_direction")
  forward = jnp.float32(1.0)
  start, _ = tasks.begin(forward, KEY)
  some, *_ = tasks.step(forward, start, jnp.array([0.5, 0.0]), KEY)
  _, seen, reward, ended = tasks.step(forward, some, jnp.ones(2), KEY)
  np.testing.assert_allclose(seen, [2.5, 2.0, 0.0])
  np.testing.assert_allclose(reward, 2.0 - 0.01 + 0.05, rtol=1e-6)
  assert ended
  state, seen, reward, ended = tasks.step(forward, some, -jnp.ones(2), KEY)
  np.testing.assert_allclose(seen, [0.5, 0.5, 0.0])
  assert ended and reward == 0
  for x, y in zip(state, some, strict=True):
    jax.tree.map(np.testing.assert_array_equal, x, y)


def test_what_cannot_be_is_refused(monkeypatch):
  with pytest.raises(ValueError, match="name='dog': must be one of cheetah_d"):
    locomotion("dog")
  # Neither brax nor MuJoCo is needed for this.
  envs = types.ModuleType("brax.envs")
  envs._envs = {"ant": None, "hopper": None}
  for name, fake in {
    "mujoco": types.SimpleNamespace(set_mju_user_warning=lambda fn: None),
    "brax": types.SimpleNamespace(envs=envs),
    "brax.envs": envs,
  }.items():
    monkeypatch.setitem(sys.modules, name, fake)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  with pytest.raises(ValueError, match="name='bee': must be one of ant, hop"):
    adapter.brax_environment("bee")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ValueError, match=r"brax: not installed.*'metajax\[brax\]'"
  ):
    adapter.brax_environment("ant")


# brax itself uses what MuJoCo has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_cheetah_is_paid_for_its_way_in_brax(tmp_path, monkeypatch):
  """The rewards are displacements of the torso by 0.05 s, less the effort."""
  pytest.importorskip("brax")
  monkeypatch.chdir(tmp_path)
  tasks = locomotion("cheetah_direction", 3)
  assert os.listdir() == []  # MuJoCo writes no log.
  policy = gaussian_policy(MLP(6, (4,)), tasks.actions)
  state, seen = tasks.begin(jnp.float32(-1.0), KEY)
  assert seen.shape == (17,)
  params = policy.init(KEY, seen[None])

  @jax.jit
  def play(task):
    rollouts = play_episodes(policy, params, tasks, task, KEY, 2)

    def again(state, action):
      new, *_ = tasks.step(task, state, action, KEY)
      return new, new.pipeline_state.x.pos[0, 0]

    begin_key, _ = jax.random.split(KEY)
    state, _ = tasks.begin(task, jax.random.split(begin_key, 2)[0])
    _, places = jax.lax.scan(again, state, rollouts.actions[0])
    return rollouts, jnp.append(state.pipeline_state.x.pos[0, 0], places)

  rollouts, places = play(jnp.float32(-1.0))
  effort = 0.05 * np.square(np.clip(rollouts.actions[0], -1, 1)).sum(-1)
  np.testing.assert_allclose(
    rollouts.rewards[0], -np.diff(places) / 0.05 - effort, atol=1e-4
  )
  assert rollouts.mask.all()
