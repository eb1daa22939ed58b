"""What VariBAD believes of the goal of a gridworld, beside the exact belief."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.policies import BeliefNetwork, beliefs
from metajax.runs import plots, rng_keys
from metajax.tasks.gridworld import goal_posterior
from metajax.tasks.trials import Player, Step, Trials, play
from metajax.types import Array, Params

SAMPLES = 100  # Latent tasks for each belief.
SHOWN = (0, 2, 4, 6, 8, 10, 12, 15, 20)  # Actions before each picture.
SIZE = 5  # Cells of a side.
LOSS, GAIN = -0.1, 1.0  # The rewards of a gridworld.


class Beliefs(NamedTuple):
  """The beliefs along trials: `[trials, T + 1, SIZE, SIZE]` each.

  Attributes:
    steps: the trials, `[trials, T + 1, ...]`.
    exact: probability of the goal in each cell.
    decoded: what VariBAD makes of it: the decoder's expected reward of the
      cell, scaled to 0 to 1.
  """

  steps: Step
  exact: np.ndarray
  decoded: np.ndarray


def along(
  network: BeliefNetwork,
  params: Params,
  player: Player,
  tasks: Trials,
  number: int,
) -> Beliefs:
  """Plays test tasks, and returns the beliefs along them."""

  def one(key: Array) -> tuple[Step, Array, Array]:
    steps = play(player, tasks, key).steps
    found = beliefs(network, params, jax.tree.map(lambda x: x[None], steps))
    found = jax.tree.map(lambda x: x[0], found)
    noise = jax.random.normal(
      jax.random.key(0), (SAMPLES, *found.mean.shape), jnp.float32
    )
    samples = found.mean + jnp.exp(found.log_scale) * noise
    rewards = _of_cells(network, params, samples, steps.observation.shape[-1])
    decoded = (rewards.mean(0) - LOSS) / (GAIN - LOSS)
    return steps, goal_posterior(steps, SIZE), decoded

  keys = jax.random.split(rng_keys.evaluation_key("test"), number)
  # One by one: the samples of all would fill the memory.
  return Beliefs(*jax.device_get(jax.jit(lambda k: jax.lax.map(one, k))(keys)))


def _of_cells(
  network: BeliefNetwork, params: Params, samples: Array, size: int
) -> Array:
  """Returns the decoded rewards `[..., SIZE, SIZE]` of who stays in a cell."""
  grid = jnp.stack(jnp.meshgrid(*[jnp.arange(SIZE)] * 2, indexing="ij"), -1)
  cells = jnp.tile(grid.reshape(-1, 2).astype(jnp.float32), size // 2)
  # A trial that stays in all cells in turn: of step k, s and s' are equal.
  latents = samples.reshape(-1, samples.shape[-1])

  def stay(cell: Array) -> Array:
    nothing = jnp.zeros(2)
    steps = Step(
      jnp.stack([cell, cell]),
      nothing.astype(jnp.int32),
      nothing,
      nothing.astype(bool),
      nothing.astype(bool),
    )
    return network.rewards(params, latents, steps)[:, 0]

  rewards = jax.vmap(stay, out_axes=-1)(cells)
  return rewards.reshape(*samples.shape[:-1], SIZE, SIZE)


def error(found: Beliefs) -> np.ndarray:
  """Returns the mean absolute error of the decoded beliefs, `[trials]`."""
  return np.abs(found.decoded - found.exact).mean((1, 2, 3))


def draw(path: Path, found: Beliefs, trial: int) -> None:
  """Draws the beliefs along one of the trials, above the exact ones."""
  rows = {"decoded": found.decoded[trial], "exact": found.exact[trial]}
  places = found.steps.observation[trial, :, :2]
  shown = [t for t in SHOWN if t < len(places)]
  goal = np.unravel_index(found.exact[trial, -1].argmax(), (SIZE, SIZE))
  figure, grid = plots.pyplot().subplots(
    len(rows),
    len(shown),
    figsize=(1.3 * len(shown), 1.5 * len(rows)),
    layout="constrained",
    squeeze=False,
  )
  for line, (name, grids) in zip(grid, rows.items(), strict=True):
    line[0].set_ylabel(name)
    for axes, t in zip(line, shown, strict=True):
      # The first number of a cell is its column, from the left.
      axes.imshow(grids[t].T, origin="lower", cmap="viridis", vmin=0, vmax=1)
      axes.plot(*places[t], "o", color="tab:red", markersize=7)
      axes.plot(*goal, "*", color="white", markersize=9, mec="black")
      axes.set(xticks=[], yticks=[])
      if line is grid[0]:
        axes.set_title(f"step {t}", fontsize=8)
  plots.save(figure, path)
