"""VariBAD's gridworld (Zintgraf et al. 2020, section 5.1): an unseen goal."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax.numerics import check_counts
from metajax.tasks.playable import Discrete, PlayableTasks, playable
from metajax.types import Array, PRNGKey

# Stay, up, right, down, left.
MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]], np.int32)


def gridworld(size: int = 5, horizon: int = 15) -> PlayableTasks:
  """Returns tasks of a player on a grid who does not see the goal.

  ::

    r_t = 1 if x_{t+1} = goal, else -0.1

  The player begins in the corner (0, 0). The goal is any cell but this one and
  the three next to it. The observation is the cell x, two numbers. A move off
  the grid does nothing. An episode does not end at the goal: the player gains
  most by staying there. With a known goal that is d moves away, the best return
  is `horizon - d + 1 - 0.1 (d - 1)`.

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
  check_counts(size=size, at_least=3)
  cells = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1)
  cells = cells.reshape(-1, 2)
  goals = jnp.asarray(cells[cells.max(1) > 1], jnp.int32)
  moves = jnp.asarray(MOVES)

  def draw(rng: PRNGKey) -> Array:
    return jax.random.choice(rng, goals)

  def begin(goal: Array, rng: PRNGKey) -> tuple[Array, Array]:
    del goal, rng
    return jnp.zeros(2, jnp.int32), jnp.zeros(2)

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
