"""Tasks of reinforcement learning that are drawn once and played many times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts
from metajax.types import Array, PRNGKey


class Discrete(NamedTuple):
  """Actions 0, 1, ..., `number - 1`, int32 scalars."""

  number: int


class Continuous(NamedTuple):
  """Actions that are vectors of real numbers, float32 `[size]`."""

  size: int


Actions = Discrete | Continuous


class PlayableTasks(NamedTuple):
  """A distribution of tasks, each of which can be played many times.

  Episodes of one task are independent, so that they can run in parallel.
  `tasks.trials.trials_of` plays them one after the other.

  Attributes:
    draw: `(rng) -> task`.
    begin: `(task, rng) -> (state, observation)`. Begins an episode.
    step: `(task, state, action, rng) -> (state, observation, reward, ended)`.
    actions: what an action is.
    horizon: the largest number of steps of an episode.
  """

  draw: Callable[[PRNGKey], Any]
  begin: Callable[[Any, PRNGKey], tuple[Any, Array]]
  step: Callable[[Any, Any, Array, PRNGKey], tuple[Any, Array, Array, Array]]
  actions: Actions
  horizon: int


def playable(
  draw: Callable[[PRNGKey], Any],
  begin: Callable[[Any, PRNGKey], tuple[Any, Array]],
  step: Callable[[Any, Any, Array, PRNGKey], tuple[Any, Array, Array, Array]],
  *,
  actions: Actions,
  horizon: int,
) -> PlayableTasks:
  """Makes `PlayableTasks`, and checks the numbers.

  Raises:
    ValueError: if `actions` are neither `Discrete` nor `Continuous`, or if
      their number or the horizon is not a positive integer.
  """
  if not isinstance(actions, Discrete | Continuous):
    raise ValueError(
      f"actions={actions!r}: must be Discrete(number) or Continuous(size)."
    )
  check_counts(actions=actions[0], horizon=horizon)
  return PlayableTasks(draw, begin, step, actions, horizon)


def discretized(tasks: PlayableTasks, table: Array) -> PlayableTasks:
  """Returns continuous tasks with the actions of a table alone.

  Args:
    tasks: tasks of `Continuous(size)` actions.
    table: `[number, size]`. Action i of the new tasks is row i.

  Raises:
    ValueError: if the actions are discrete, or if the table does not fit.
  """
  table = jnp.asarray(table, jnp.float32)
  size = tasks.actions.size if isinstance(tasks.actions, Continuous) else None
  if size is None or table.ndim != 2 or table.shape[1] != size:
    raise ValueError(
      f"table: an array {table.shape} for tasks of {tasks.actions}; must be "
      "[number, size] for tasks of Continuous(size)."
    )

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    return tasks.step(task, state, table[action], rng)

  return playable(
    tasks.draw,
    tasks.begin,
    step,
    actions=Discrete(table.shape[0]),
    horizon=tasks.horizon,
  )


def same_start(tasks: PlayableTasks) -> PlayableTasks:
  """Returns tasks all episodes of which begin in the same way.

  The start is drawn with the task. What `begin` draws, such as the goal of a
  maze, is then part of the task.
  """

  def draw(rng: PRNGKey) -> Any:
    draw_key, begin_key = jax.random.split(rng)
    task = tasks.draw(draw_key)
    return task, tasks.begin(task, begin_key)

  def begin(task: Any, rng: PRNGKey) -> tuple[Any, Array]:
    del rng
    return task[1]

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    return tasks.step(task[0], state, action, rng)

  return tasks._replace(draw=draw, begin=begin, step=step)


def told(tasks: PlayableTasks) -> PlayableTasks:
  """Returns tasks that show themselves, for a player that need not learn.

  The numbers of the task, as one vector, are appended to the observation, which
  becomes a vector, too. The best policy of these tasks is an upper bound for
  all that learn the task from its rewards.
  """

  def shown(task: Any, observation: Array) -> Array:
    leaves = [observation, *jax.tree.leaves(task)]
    return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in leaves])

  def begin(task: Any, rng: PRNGKey) -> tuple[Any, Array]:
    state, observation = tasks.begin(task, rng)
    return state, shown(task, observation)

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    state, observation, reward, ended = tasks.step(task, state, action, rng)
    return state, shown(task, observation), reward, ended

  return tasks._replace(begin=begin, step=step)
