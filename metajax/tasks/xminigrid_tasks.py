"""Playable tasks of XLand-MiniGrid, which need the extra `xminigrid`."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from metajax.tasks.playable import Discrete, PlayableTasks, playable
from metajax.types import Array, PRNGKey


def xminigrid_tasks(name: str, rulesets: Any = None) -> PlayableTasks:
  """Makes tasks of an environment of XLand-MiniGrid.

  A task is a ruleset: a goal, rules of what objects become, and objects. The
  player sees neither goal nor rules. Each episode draws new places. It ends
  with the reward `1 - 0.9 t / horizon` when the goal is reached at step t. The
  observation is the field of view, one-hot in tile and color, `[view, view, 13
  + 12]`.

  Args:
    name: a name that `xminigrid.make` knows, such as "XLand-MiniGrid-R1-9x9".
    rulesets: a tree of arrays `[n, ...]` like `xminigrid.types.RuleSet`, of
      which tasks are drawn uniformly. None: the environment's own task, as in
      "MiniGrid-DoorKey-5x5"; `playable.same_start` makes its layout the task.

  Raises:
    ValueError: if xminigrid is not installed, if it does not know the name, or
      if `rulesets` are not given where the environment needs them, or given
      where it does not.

  References:
    Nikulin et al., `XLand-MiniGrid: Scalable Meta-Reinforcement Learning
    Environments in JAX <https://arxiv.org/abs/2312.12044>`_, 2024.
  """
  if importlib.util.find_spec("xminigrid") is None:
    raise ValueError(
      "xminigrid: not installed. Run pip install 'metajax[xminigrid]'."
    )
  # Imported here, because the import computes arrays.
  import xminigrid
  from xminigrid.core.constants import NUM_COLORS, NUM_TILES

  made: Any = xminigrid.make(name)
  environment, params = made
  if hasattr(params, "ruleset") == (rulesets is None):
    need = "needs" if rulesets is None else "has no"
    raise ValueError(f"rulesets={rulesets}: {name} {need} rulesets.")

  def of(task: Any) -> Any:
    return params if task is None else params.replace(ruleset=task)

  def observe(timestep: Any) -> Array:
    tile, color = timestep.observation[..., 0], timestep.observation[..., 1]
    return jnp.concatenate(
      [jax.nn.one_hot(tile, NUM_TILES), jax.nn.one_hot(color, NUM_COLORS)], -1
    )

  def draw(rng: PRNGKey) -> Any:
    return jax.tree.map(lambda x: jax.random.choice(rng, x), rulesets)

  def begin(task: Any, rng: PRNGKey) -> tuple[Any, Array]:
    timestep = environment.reset(of(task), rng)
    return timestep, observe(timestep)

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    del rng
    new = environment.step(of(task), state, action)
    return new, observe(new), new.reward, new.last()

  return playable(
    draw,
    begin,
    step,
    actions=Discrete(environment.num_actions(params)),
    horizon=int(params.max_steps),
  )
