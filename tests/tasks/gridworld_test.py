"""VariBAD's gridworld: its rules, and what a player who knows can earn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.players import Sizes, optimal_value, random_player
from metajax.tasks.gridworld import (
  best_return,
  goal_cells,
  goal_posterior,
  gridworld,
)
from metajax.tasks.tabular_mdp import MDPParams
from metajax.tasks.trials import play, trials_of

SIZE, HORIZON = 5, 15


def _tables(goal):
  """Transitions and rewards of the step function, all cells and actions."""
  tasks = gridworld()
  cells = jnp.stack(jnp.divmod(jnp.arange(SIZE**2), SIZE), -1)
  key = jax.random.key(0)

  def one(cell, action):
    new, _, reward, _ = tasks.step(goal, cell, action, key)
    return jax.nn.one_hot(new[0] * SIZE + new[1], SIZE**2), reward

  every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
  transitions, means = every(cells, jnp.arange(5))
  return MDPParams(transitions=transitions, means=means)


def test_best_return_of_every_goal_is_that_of_the_planner():
  """Value iteration on the step function; and the mean over goals."""
  goals = np.array([(x, y) for x in range(5) for y in range(5)])
  goals = goals[goals.max(1) > 1]
  assert len(goals) == 21
  sizes = Sizes(SIZE**2, 5, HORIZON)
  found = jax.jit(jax.vmap(lambda g: optimal_value(_tables(g), sizes)))(
    jnp.asarray(goals)
  )
  distance = goals.sum(1)
  expected = HORIZON - distance + 1 - 0.1 * (distance - 1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(best_return(goals), expected, rtol=1e-6)
  # No goal is as near as 2 moves for an episode of 1, and every step costs.
  np.testing.assert_allclose(best_return(goals, 1), -0.1)
  # The mean distance of the 21 goals is 32 / 7.
  np.testing.assert_allclose(found.mean(), 16.1 - 1.1 * 32 / 7, rtol=1e-5)


@pytest.mark.slow
def test_goals_are_uniform_and_never_near_the_start():
  draws = jax.vmap(gridworld().draw)(jax.random.split(jax.random.key(1), 4200))
  cells, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
  assert len(cells) == 21
  assert np.all(cells.max(1) > 1)
  assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


@pytest.mark.slow
def test_trial_has_four_episodes_that_begin_in_the_corner():
  tasks = trials_of(gridworld(), 4 * HORIZON)
  steps = jax.jit(lambda key: play(random_player(5), tasks, key).steps)(
    jax.random.key(2)
  )
  np.testing.assert_array_equal(np.flatnonzero(steps.ended), [15, 30, 45, 60])
  np.testing.assert_array_equal(steps.observation[::HORIZON], 0.0)
  moves = np.diff(np.asarray(steps.observation), axis=0)
  goes_on = ~np.asarray(steps.ended[1:])
  assert np.abs(moves[goes_on]).sum(-1).max() == 1
  assert set(np.unique(steps.reward[1:])) <= {np.float32(-0.1), np.float32(1)}


@pytest.mark.slow
def test_posterior_is_of_the_goals_that_explain_all_rewards():
  """Each goal's rewards along the same actions, step by step."""
  size, horizon = 3, 4
  tasks = trials_of(gridworld(size, horizon), 3 * horizon)
  keys = jax.random.split(jax.random.key(3), 20)
  trials = jax.device_get(
    jax.jit(jax.vmap(lambda key: play(random_player(5), tasks, key).steps))(
      keys
    )
  )
  found = jax.jit(jax.vmap(lambda x: goal_posterior(x, size)))(trials)
  moves = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
  known = 0
  for i in range(len(keys)):
    goals, cell = {tuple(g) for g in goal_cells(size).tolist()}, (0, 0)
    for t in range(3 * horizon + 1):
      if t:
        step = moves[trials.action[i, t]]
        cell = tuple(
          min(max(x + d, 0), size - 1) for x, d in zip(cell, step, strict=True)
        )
        paid = trials.reward[i, t] == 1
        goals = {g for g in goals if (g == cell) == paid}
        cell = (0, 0) if t % horizon == 0 else cell
      expected = np.zeros((size, size))
      for goal in goals:
        expected[goal] = 1 / len(goals)
      np.testing.assert_allclose(found[i, t], expected, rtol=1e-6)
    known += len(goals) == 1
  assert known > 3


def test_grid_that_cannot_be_is_refused():
  with pytest.raises(ValueError, match="size=2: must be 3 or more"):
    gridworld(2)
  with pytest.raises(ValueError, match="horizon=0: must be 1 or more"):
    gridworld(5, 0)
