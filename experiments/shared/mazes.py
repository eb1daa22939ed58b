"""Records and draws the walks of a player through gymnax's maze."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.runs import plots, rng_keys
from metajax.tasks.trials import Player, Step, Trials, play
from metajax.types import Array, PRNGKey


class Walk(NamedTuple):
  """A walk in a maze: places `[n, 2]` (row, column), and the goal `[2]`."""

  places: np.ndarray
  goal: np.ndarray


def searches(
  tasks: Trials, player: Player, number: int
) -> dict[str, list[Walk]]:
  """Plays test mazes. Returns the first and the last search for each goal.

  Args:
    tasks: tasks of gymnax's maze.
    player: the player.
    number: number of mazes.

  Returns:
    The walks, one for each maze, by "first search" and "last search".
  """

  def reset(rng: PRNGKey) -> tuple[Any, Array]:
    task, observation = tasks.reset(rng)
    return task, _seen(task, observation)

  def step(task: Any, action: Array, rng: PRNGKey) -> tuple:
    task, observation, reward, ended = tasks.step(task, action, rng)
    return task, _seen(task, observation), reward, ended

  def act(memory: Any, seen: Step, rng: PRNGKey) -> tuple[Array, Any]:
    return player.act(
      memory, seen._replace(observation=seen.observation[4:]), rng
    )

  shown = Player(player.start, act), tasks._replace(reset=reset, step=step)
  keys = jax.random.split(rng_keys.evaluation_key("test"), number)
  steps = jax.jit(jax.vmap(lambda key: play(*shown, key).steps))(keys)
  places, goals = np.split(np.asarray(steps.observation[..., :4], int), 2, -1)
  rewarded, ended = np.asarray(steps.reward) > 0, np.asarray(steps.ended)
  parts: dict[str, list[Walk]] = {"first search": [], "last search": []}
  for place, goal, found, end in zip(
    places, goals, rewarded, ended, strict=True
  ):
    # A search ends with a reward or with its episode. The next one starts
    # elsewhere.
    borders = [0, *np.flatnonzero(found | end), len(found)]
    spans = [(a, b) for a, b in itertools.pairwise(borders) if a < b]
    finished = [(a, b) for a, b in spans if b < len(found) and found[b]]
    last = finished[-1] if finished else spans[0]
    for name, (a, b) in zip(parts, (spans[0], last), strict=True):
      # A player that reaches the goal is moved at once, so add the goal.
      reached = goal[:1] if (a, b) in finished else goal[:0]
      way = np.concatenate([place[a:b], reached])
      parts[name].append(Walk(way, goal[0]))
  return parts


def _seen(task: Any, observation: Array) -> Array:
  """Adds the positions of the player and the goal, which players do not see."""
  return jnp.concatenate([task.state.pos, task.state.goal, observation])


def draw(
  path: Path, walls: np.ndarray, rows: Mapping[str, Sequence[Walk]]
) -> None:
  """Draws walks through one maze.

  Args:
    path: the PNG file.
    walls: `[rows, columns]`, nonzero for walls.
    rows: walks by the name of their row in the picture.
  """
  columns = max(map(len, rows.values()))
  figure, grid = plots.pyplot().subplots(
    len(rows),
    columns,
    figsize=(2.2 * columns, 2.4 * len(rows)),
    layout="constrained",
    squeeze=False,
  )
  for line, (name, all_walks) in zip(grid, rows.items(), strict=True):
    for axes, walk in zip(line, all_walks, strict=False):
      axes.imshow(walls, cmap="Greys", vmax=1.5)
      y, x = walk.places.T
      axes.plot(x, y, color="tab:blue", lw=1.5, alpha=0.7)
      axes.plot(x[0], y[0], "o", color="tab:blue")
      axes.plot(*walk.goal[::-1], "*", color="tab:red", markersize=12)
      axes.set_title(f"{name}: {len(x) - 1} steps", fontsize=8)
      axes.set(xticks=[], yticks=[])
  plots.save(figure, path)
