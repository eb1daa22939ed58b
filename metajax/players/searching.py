"""A player that searches VariBAD's gridworld as well as can be."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax.numerics import check_counts, check_number
from metajax.tasks.gridworld import MOVES, best_return, goal_cells
from metajax.tasks.trials import Player, Step
from metajax.types import Array, PRNGKey


class Search(NamedTuple):
  """A search.

  Attributes:
    actions: `[episodes * horizon]`, what to do while the goal is unknown.
    total: the expected total reward of all episodes.
  """

  actions: np.ndarray
  total: float


def search_path(
  size: int = 5, horizon: int = 15, episodes: int = 4, beam: int = 20_000
) -> Search:
  """Plans the search for a goal that is equally likely in each cell.

  Until the player steps on the goal, it learns only where the goal is not. The
  Bayes-optimal player therefore follows a fixed path, and stays at the goal or
  walks straight to it afterwards. Its expected total is the maximum over paths
  of ::

    1 / n sum_g [ -0.1 t_g + (H - t_g % H) + (rest of episodes) R_g ]

  where step t_g is the first on the cell g, H the horizon, and R_g the best
  return of an episode with the goal g. (A goal that is not found costs 0.1 for
  every step.) Dynamic programming over position and set of visited cells keeps
  the `beam` most promising states of each step. With all of them it would be
  exact. For the defaults the path is optimal: it finds a goal in every step
  from the second on, and every later episode is as good as with a known goal.

  Args:
    size: cells of a side, 3 to 8: a set of cells is a number of 64 bits.
    horizon: steps of an episode, H.
    episodes: the number of episodes.
    beam: states that are kept, at least 1.

  Raises:
    ValueError: if a number is out of its range.
  """
  check_number("size", size, at_least=3, at_most=8)
  check_counts(size=size, episodes=episodes, beam=beam, horizon=horizon)
  goals = goal_cells(size)
  number = len(goals)
  cells = np.stack(np.divmod(np.arange(size**2), size), -1)
  bits = np.zeros(size**2, np.int64)
  bits[goals @ [size, 1]] = np.left_shift(np.int64(1), np.arange(number))
  moved = np.clip(cells[:, None] + MOVES, 0, size - 1) @ [size, 1]
  known = np.asarray(best_return(jnp.asarray(cells), horizon), np.float64)
  steps = np.arange(episodes * horizon)
  to_stay = horizon - steps % horizon
  later = episodes - 1 - steps // horizon

  cell, seen, value = np.zeros(1, int), np.zeros(1, np.int64), np.zeros(1)
  layers = []
  for t in steps:
    if t % horizon == 0:
      cell = np.zeros_like(cell)
    parent = np.repeat(np.arange(len(cell)), len(MOVES))
    action = np.tile(np.arange(len(MOVES)), len(cell))
    cell = moved[cell].ravel()
    new = (bits[cell] & ~seen[parent]) != 0
    seen = seen[parent] | bits[cell]
    left = number - np.bitwise_count(seen)
    gain = np.where(new, to_stay[t] + later[t] * known[cell], 0.0)
    value = value[parent] + gain - 0.1 * left
    # As if every next step found a goal.
    ahead = to_stay[t + 1 :] + later[t + 1 :] * known[bits > 0].mean()
    hope = np.append(0.0, np.cumsum(ahead[:number]))
    hope = hope[np.minimum(left, len(hope) - 1)] - 0.05 * left * (left - 1)
    order = np.lexsort((-value, cell, seen))
    same = (np.diff(cell[order]) == 0) & (np.diff(seen[order]) == 0)
    order = order[np.append(True, ~same)]
    if len(order) > beam:
      best = np.argsort(-(value + hope)[order], kind="stable")
      order = order[best[:beam]]
    cell, seen, value = cell[order], seen[order], value[order]
    layers.append((parent[order], action[order]))
  actions, place = [], int(value.argmax())
  for parents, taken in reversed(layers):
    actions.append(taken[place])
    place = parents[place]
  return Search(np.array(actions[::-1], np.int32), float(value.max() / number))


class _Memory(NamedTuple):
  """The number of the step, the position, and the goal, if it is found."""

  time: Array
  cell: Array
  goal: Array
  found: Array


def searcher(search: Search, size: int = 5) -> Player:
  """Returns a player that follows a search, and then uses what it found."""
  path, moves = jnp.asarray(search.actions), jnp.asarray(MOVES)

  def start() -> _Memory:
    nowhere = jnp.zeros(2, jnp.int32)
    return _Memory(jnp.int32(0), nowhere, nowhere, jnp.bool_(False))

  def act(memory: _Memory, step: Step, rng: PRNGKey) -> tuple[Array, _Memory]:
    del rng
    now = ~step.first & (step.reward > 0) & ~memory.found
    goal = jnp.where(now, memory.cell, memory.goal)
    found = memory.found | now
    cell = jnp.where(step.ended, 0, memory.cell)
    # Up to the goal's row and column, from the corner or from the goal.
    right, up = goal - cell
    straight = jnp.where(right > 0, 2, jnp.where(up > 0, 1, 0))
    action = jnp.where(found, straight, path[memory.time])
    cell = jnp.clip(cell + moves[action], 0, size - 1)
    return action, _Memory(memory.time + 1, cell, goal, found)

  return Player(start, act)
