"""XLand-MiniGrid's episodes are those of its own loop."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.xminigrid_tasks import xminigrid_tasks


@pytest.mark.slow
def test_episode_is_that_of_the_environment():
  """Of the second of two rulesets: stand beside a ball, or hold it."""
  xminigrid = pytest.importorskip("xminigrid")
  from xminigrid.core.goals import AgentHoldGoal, AgentNearGoal
  from xminigrid.core.rules import EmptyRule
  from xminigrid.types import RuleSet

  name, ball = "XLand-MiniGrid-R1-9x9", jnp.array([3, 1], jnp.uint8)
  both = [
    RuleSet(goal.encode(), EmptyRule().encode()[None], ball[None])
    for goal in (AgentNearGoal(ball), AgentHoldGoal(ball))
  ]
  tasks = xminigrid_tasks(name, jax.tree.map(lambda *x: jnp.stack(x), *both))
  drawn = jax.vmap(tasks.draw)(jax.random.split(jax.random.key(0), 100))
  goals, counts = np.unique(np.asarray(drawn.goal), axis=0, return_counts=True)
  np.testing.assert_array_equal(
    np.sort(goals, 0), np.sort([x.goal for x in both], 0)
  )
  assert counts.min() > 25
  environment, params = xminigrid.make(name)
  params = params.replace(ruleset=both[1])
  key, nothing = jax.random.key(1), jax.random.key(2)
  timestep = environment.reset(params, key)
  state, seen = tasks.begin(both[1], key)
  ours, theirs = jax.jit(tasks.step), jax.jit(environment.step)
  # Forward, right, left, pick up, ..., to the end of the episode.
  draw, rewards = np.random.default_rng(0), []
  for _ in range(tasks.horizon):
    tile = timestep.observation
    np.testing.assert_array_equal(seen.argmax(-1), tile[..., 0])
    np.testing.assert_array_equal(seen[..., 13:].argmax(-1), tile[..., 1])
    action = jnp.int32(draw.integers(4))
    timestep = theirs(params, timestep, action)
    state, seen, reward, ended = ours(both[1], state, action, nothing)
    assert reward == timestep.reward and ended == timestep.last()
    rewards.append(float(reward))
    if ended:
      break
  assert ended and rewards[-1] > 0  # It picked the ball up.


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"xminigrid: not installed\. Run pip"):
    xminigrid_tasks("MiniGrid-Empty-5x5")


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, rulesets, message",
  [
    ("XLand-MiniGrid-R1-9x9", None, "XLand-MiniGrid-R1-9x9 needs rulesets"),
    ("MiniGrid-Empty-5x5", (), "MiniGrid-Empty-5x5 has no rulesets"),
    ("Chess", None, "Unregistered environment"),
  ],
)
def test_rulesets_that_do_not_fit_are_named(name, rulesets, message):
  pytest.importorskip("xminigrid")
  with pytest.raises(ValueError, match=message):
    xminigrid_tasks(name, rulesets)
