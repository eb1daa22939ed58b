"""What VariBAD believes of the rewards of a gridworld, and the exact belief."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.evaluation import Estimate, estimate
from metajax.policies import BeliefNetwork, beliefs
from metajax.runs import plots, rng_keys
from metajax.runs.flags import FLAGS
from metajax.tasks.gridworld import MOVES, goal_posterior
from metajax.tasks.trials import Player, Step, Trials, play
from metajax.types import Array, Params

SAMPLES = 50  # Latent tasks for each belief.
SHOWN = (0, 4, 6, 8, 10, 12, 15, 20, 25)  # Actions before each picture.
SIZE = 5  # Cells of a side.


class Beliefs(NamedTuple):
  """What is believed along trials of T actions.

  Attributes:
    steps: the trials, `[trials, T + 1, ...]`.
    exact: probability of the goal in each cell, `[trials, T + 1, SIZE, SIZE]`.
    decoded: the decoder's expected reward of a move into the cell, in the same
      shape. It is of all moves of a trial, and most moves of its future are
      towards the goal, so it is above what the exact probability gives.
    errors: mean squared errors `[trials, T + 1]` of all rewards of the trial,
      decoded from each belief.
  """

  steps: Step
  exact: np.ndarray
  decoded: np.ndarray
  errors: np.ndarray


def report(
  workdir: Path,
  network: BeliefNetwork,
  params: Params,
  player: Player,
  tasks: Trials,
  horizon: int,
) -> dict[str, Estimate]:
  """Draws `beliefs.png` of a trial, with episodes of `horizon` steps.

  Returns:
    The mean squared errors of all rewards of a trial, decoded from the belief
    after 0, 1, ... episodes, over up to 100 test tasks.
  """
  number = min(FLAGS.eval_tasks, 100)
  found = along(network, params, player, tasks, number)
  draw(workdir / "beliefs.png", found, trial=0)
  return {
    f"varibad_reward_error_after_{episode}": estimate(errors)
    for episode, errors in enumerate(found.errors[:, ::horizon].T)
  }


def along(
  network: BeliefNetwork,
  params: Params,
  player: Player,
  tasks: Trials,
  number: int,
) -> Beliefs:
  """Plays test tasks, and returns what is believed along them."""

  def one(key: Array) -> Beliefs:
    steps = play(player, tasks, key).steps
    found = beliefs(network, params, jax.tree.map(lambda x: x[None], steps))
    found = jax.tree.map(lambda x: x[0], found)
    noise = jax.random.normal(jax.random.key(0), (SAMPLES, *found.mean.shape))
    samples = found.mean + jnp.exp(found.log_scale) * noise
    latents = samples.reshape(-1, samples.shape[-1])

    def mean(rewards: Array) -> Array:
      return rewards.reshape(*samples.shape[:2], -1).mean(0)

    expected = mean(network.rewards(params, latents, steps))
    errors = jnp.square(expected - steps.reward[1:]).mean(-1)
    size = steps.observation.shape[-1]
    cells = mean(_of_cells(network, params, latents, size))
    cells = cells.reshape(-1, SIZE, SIZE)
    return Beliefs(steps, goal_posterior(steps, SIZE), cells, errors)

  keys = jax.random.split(rng_keys.evaluation_key("test"), number)
  # One by one: the samples of all would fill the memory.
  return jax.device_get(jax.jit(lambda k: jax.lax.map(one, k))(keys))


def _of_cells(
  network: BeliefNetwork, params: Params, latents: Array, size: int
) -> Array:
  """Returns the mean decoded rewards of moves into the cells, `[K, cells]`."""
  actions = jnp.arange(1, len(MOVES))  # Without that of staying.
  moves = jnp.asarray(MOVES)[actions]
  grid = jnp.stack(jnp.meshgrid(*[jnp.arange(SIZE)] * 2, indexing="ij"), -1)

  def move(cell: Array, action: Array, step: Array) -> Array:
    nothing = jnp.zeros(2)
    steps = Step(
      # Players that see the last observation, too, get the cell twice.
      jnp.tile(jnp.stack([cell - step, cell]), size // 2).astype(jnp.float32),
      jnp.stack([action, action]),
      nothing,
      nothing.astype(bool),
      nothing.astype(bool),
    )
    return network.rewards(params, latents, steps)[:, 0]

  def into(cell: Array) -> Array:
    rewards = jax.vmap(move, (None, 0, 0))(cell, actions, moves)
    exists = ((cell - moves >= 0) & (cell - moves < SIZE)).all(1)[:, None]
    return jnp.where(exists, rewards, 0.0).sum(0) / exists.sum()

  return jax.vmap(into, out_axes=-1)(grid.reshape(-1, 2))


def draw(path: Path, found: Beliefs, trial: int) -> None:
  """Draws what is believed along a trial, and the exact belief below."""
  rows = {
    "decoded reward": found.decoded[trial],
    "exact probability": found.exact[trial],
  }
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
  for axes, t in zip(grid[0], shown, strict=True):
    axes.set_title(f"step {t}", fontsize=8)
  for line, (name, grids) in zip(grid, rows.items(), strict=True):
    line[0].set_ylabel(name, fontsize=8)
    for axes, t in zip(line, shown, strict=True):
      # The first number of a cell is its column, from the left.
      axes.imshow(grids[t].T, origin="lower", cmap="viridis", vmin=0, vmax=1)
      axes.plot(*places[t], "o", color="tab:red", markersize=7)
      axes.plot(*goal, "*", color="white", markersize=9, mec="black")
      axes.set(xticks=[], yticks=[])
  plots.save(figure, path)
