"""VariBAD's gridworld (Zintgraf et al. 2020, section 5.1): an unseen goal."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax.numerics import check_counts
from metajax.tasks.playable import Discrete, PlayableTasks, playable
from metajax.tasks.trials import Step
from metajax.types import Array, PRNGKey

# Stay, up, right, down, left.
MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]], np.int32)


def goal_cells(size: int) -> np.ndarray:
  """Returns the cells in which the goal may be, int32 `[goals, 2]`.

  Raises:
    ValueError: if the size is below 3.
  """
  check_counts(size=size, at_least=3)
  cells = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1)
  cells = cells.reshape(-1, 2).astype(np.int32)
  return cells[cells.max(1) > 1]


def best_return(goals: Array, horizon: int = 15) -> Array:
  """Returns the best return of an episode with a known goal.

  ::

    horizon - d + 1 - 0.1 (d - 1)

  d is the number of moves to the goal. It is `-0.1 horizon` if d is larger than
  the horizon.

  Args:
    goals: int `[..., 2]`.
    horizon: steps of an episode.
  """
  distance = goals.sum(-1)
  stays = horizon - distance + 1 - 0.1 * (distance - 1)
  return jnp.where(distance <= horizon, stays, -0.1 * horizon)


def goal_posterior(steps: Step, size: int = 5) -> Array:
  """Computes the exact belief over the goal along a trial.

  ::

    p_t(g) = 1 / (number of goal cells not visited until t)  for those cells

  Once the player has stepped on the goal, p_t is 1 there.

  Args:
    steps: `[T + 1, ...]`, of one trial of `gridworld(size)`. The first two
      numbers of an observation are the cell.
    size: cells of a side.

  Returns:
    Probabilities `[T + 1, size, size]`, before each action and after the last.
  """
  goals = goal_cells(size)
  prior = jnp.zeros((size, size)).at[goals[:, 0], goals[:, 1]].set(1.0)
  cells = steps.observation[:-1, :2].astype(jnp.int32)
  # The observation after an episode's end is of the next one.
  cells = jnp.clip(cells + jnp.asarray(MOVES)[steps.action[1:]], 0, size - 1)
  here = jax.nn.one_hot(cells @ jnp.array([size, 1]), size**2)
  here = here.reshape(-1, size, size)
  goal = jnp.where(steps.reward[1:, None, None] > 0, here, 0.0)
  seen, found = (
    jnp.pad(jax.lax.cummax(x), ((1, 0), (0, 0), (0, 0))) for x in (here, goal)
  )
  left = prior * (1 - seen)
  left = left / jnp.maximum(left.sum((1, 2), keepdims=True), 1)
  return jnp.where(found.any((1, 2), keepdims=True), found, left)


def gridworld(size: int = 5, horizon: int = 15) -> PlayableTasks:
  """Returns tasks of a player on a grid who does not see the goal.

  ::

    r_t = 1 if x_{t+1} = goal, else -0.1

  The player begins in the corner (0, 0). The goal is any cell but this one and
  the three next to it. The observation is the cell x, two numbers. A move off
  the grid does nothing. An episode does not end at the goal: the player gains
  most by staying there. `best_return` is the return if the goal is known.

  The paper plays 4 episodes: `trials_of(gridworld(), 60)`. The rules are those
  of `environments/navigation/gridworld.py` of lmzintgraf/varibad.

  Args:
    size: cells of a side, at least 3.
    horizon: steps of an episode.

  Raises:
    ValueError: if a number is out of its range.

  References:
    Zintgraf et al., `VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via
    Meta-Learning <https://arxiv.org/abs/1910.08348>`_, 2020.
  """
  goals = jnp.asarray(goal_cells(size))
  moves = jnp.asarray(MOVES)

  def draw(rng: PRNGKey) -> Array:
    return jax.random.choice(rng, goals)

  def begin(goal: Array, rng: PRNGKey) -> tuple[Array, Array]:
    del goal, rng
    return jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.float32)

  def step(
    goal: Array, cell: Array, action: Array, rng: PRNGKey
  ) -> tuple[Array, Array, Array, Array]:
    del rng
    cell = jnp.clip(cell + moves[action], 0, size - 1)
    reward = jnp.where((cell == goal).all(), 1.0, -0.1)
    return cell, cell.astype(jnp.float32), reward, jnp.array(False)

  return playable(
    draw, begin, step, actions=Discrete(len(MOVES)), horizon=horizon
  )
