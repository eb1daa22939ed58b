"""The search of a gridworld against all paths, and against what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.players import search_path, searcher
from metajax.tasks.gridworld import MOVES, best_return, goal_cells, gridworld
from metajax.tasks.trials import play, trials_of


def _rewards(search, size, horizon, episodes):
  """The rewards of each goal in turn, `[goals, episodes, horizon]`."""
  tasks = gridworld(size, horizon)
  goals = jnp.asarray(goal_cells(size))

  def one(goal):
    fixed = tasks._replace(draw=lambda rng: goal)
    trials = trials_of(fixed, episodes * horizon)
    return play(searcher(search, size), trials, jax.random.key(0)).rewards

  found = jax.jit(jax.vmap(one))(goals)
  return np.asarray(found).reshape(len(goals), episodes, horizon)


def test_search_is_the_best_of_all_paths():
  """Of 5^6: two episodes of three steps, five goals, one of them too far."""
  size, horizon, episodes = 3, 3, 2
  goals = goal_cells(size)
  assert len(goals) == 5
  steps = horizon * episodes
  codes = np.arange(5**steps)
  place = np.zeros((len(codes), 2), np.int8)
  first = np.full((len(goals), len(codes)), steps, np.int8)
  for t in range(steps):
    if t == horizon:
      place[:] = 0
    place = np.clip(place + MOVES[codes // 5**t % 5], 0, size - 1)
    place = place.astype(np.int8)
    for i, goal in enumerate(goals):
      here = (place == goal).all(1) & (first[i] == steps)
      first[i, here] = t
  total = 0.0
  for i, goal in enumerate(goals):
    again = float(best_return(goal, horizon))
    later = np.array([horizon - t % horizon for t in range(steps)] + [0])
    rest = np.array([again] * horizon + [0.0] * (horizon + 1))
    total = total + later[first[i]] + rest[first[i]] - 0.1 * first[i]
  search = search_path(size, horizon, episodes)
  np.testing.assert_allclose(search.total, total.max() / 5, rtol=1e-6)
  earned = _rewards(search, size, horizon, episodes)
  np.testing.assert_allclose(earned.sum((1, 2)).mean(), search.total, rtol=1e-6)


@pytest.mark.slow
def test_search_of_the_paper_is_optimal():
  """No player finds more in the first episode, nor earns more in the others.

  No goal is less than 2 moves away. From the second step on, a step can reach
  one cell more, with 15 - t steps left to stay there; the others cost 0.1.
  """
  left = 21 - np.arange(15)
  first = (np.arange(14, 0, -1).sum() - 0.1 * left.sum()) / 21
  np.testing.assert_allclose(first, 4.0)
  known = 16.1 - 1.1 * 32 / 7
  search = search_path()
  np.testing.assert_allclose(search.total, first + 3 * known, rtol=1e-6)
  by_episode = _rewards(search, 5, 15, 4).sum(-1).mean(0)
  np.testing.assert_allclose(by_episode, [first, *[known] * 3], rtol=1e-5)


def test_numbers_out_of_range_are_named():
  for name in ("horizon", "episodes", "beam"):
    with pytest.raises(ValueError, match=f"{name}=0: must be 1 or more"):
      search_path(**{name: 0})
  with pytest.raises(ValueError, match="size=9: must be 3 .* 8"):
    search_path(9)
