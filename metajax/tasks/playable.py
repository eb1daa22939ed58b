"""Tasks of reinforcement learning that are drawn once and played many times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.batches import only_array
from metajax.numerics import check_counts, floating
from metajax.types import Array, PRNGKey


class Discrete(NamedTuple):
  """Actions 0, 1, ..., `number - 1`, int32 scalars."""

  number: int


class Continuous(NamedTuple):
  """Actions that are vectors of real numbers, float32 `[size]`."""

  size: int


Actions = Discrete | Continuous


def as_actions(actions: Actions | int) -> Actions:
  """Returns the actions; a number n stands for `Discrete(n)`."""
  if isinstance(actions, Discrete | Continuous):
    return actions
  return Discrete(actions)


class PlayableTasks(NamedTuple):
  """A distribution of tasks, each of which can be played many times.

  Episodes of one task are independent, so that they can run in parallel.
  `tasks.trials.trials_of` plays them one after the other.

  Attributes:
    draw: `(rng) -> task`.
    begin: `(task, rng) -> (state, observation)`. Begins an episode.
    step: `(task, state, action, rng) -> (state, observation, reward, ended)`.
      State and observation have the shapes and dtypes of those of `begin`. The
      reward is a scalar, and `ended` a bool scalar.
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


def check_playable(tasks: PlayableTasks) -> None:
  """Raises a `ValueError` if the argument is no `PlayableTasks`."""
  if not isinstance(tasks, PlayableTasks):
    raise ValueError(
      f"tasks: {type(tasks).__name__} given, must be PlayableTasks, such as "
      "playable(...)."
    )


def checked(tasks: PlayableTasks) -> PlayableTasks:
  """Returns the tasks, with checks of what their functions return.

  The observation of a step is left to `as_begun`, since `step` is not given the
  one before.

  Raises:
    ValueError: in use, for something else than `PlayableTasks` says. The
      message names it.
  """
  check_playable(tasks)

  def begin(task: Any, rng: PRNGKey) -> tuple[Any, Array]:
    begun = tasks.begin(task, rng)
    if not isinstance(begun, tuple | list) or len(begun) != 2:
      raise ValueError("begin: must return (state, observation).")
    state, observation = jax.tree.map(jnp.asarray, tuple(begun))
    return state, only_array(observation, "the observation", "begin")

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    stepped = tasks.step(task, state, action, rng)
    if not isinstance(stepped, tuple | list) or len(stepped) != 4:
      raise ValueError("step: must return (state, observation, reward, ended).")
    new, seen, reward, ended = jax.tree.map(jnp.asarray, tuple(stepped))
    for name, x in (("reward", reward), ("ended", ended)):
      if only_array(x, name, "step").shape != ():
        raise ValueError(f"step: {name} has shape {x.shape}, must be a scalar.")
    if ended.dtype != bool:
      raise ValueError(f"step: ended is {ended.dtype}, must be bool.")
    seen = only_array(seen, "the observation", "step")
    return as_begun("state", new, state), seen, floating(reward), ended

  return tasks._replace(begin=begin, step=step)


def as_begun(name: str, new: Any, old: Any) -> Any:
  """Returns a state or observation in the dtypes of the one before.

  Args:
    name: "state" or "observation".
    new: that of `step`.
    old: that of `begin`, or of an earlier step, or its shapes.

  Raises:
    ValueError: if a shape differs, which jnp would broadcast, or if a dtype of
      the old one cannot hold the new one.
  """
  trees = [str(jax.tree.structure(x)) for x in (new, old)]
  if trees[0] != trees[1]:
    raise ValueError(
      f"step: the {name} is {trees[0]}, but that of begin {trees[1]}; must be "
      "the same tree of arrays."
    )

  def cast(path: Any, x: Array, like: Array) -> Array:
    same = x.dtype == like.dtype  # Keys cannot be cast.
    fits = same or jnp.promote_types(x.dtype, like.dtype) == like.dtype
    if x.shape != like.shape or not fits:
      where = jax.tree_util.keystr(path)
      raise ValueError(
        f"step: the {name}{where} is {x.dtype} {x.shape}, but that of begin is "
        f"{like.dtype} {like.shape}; must be the same."
      )
    return x if same else x.astype(like.dtype)

  return jax.tree_util.tree_map_with_path(cast, new, old)


def discretized(tasks: PlayableTasks, table: Array) -> PlayableTasks:
  """Returns continuous tasks with the actions of a table alone.

  Args:
    tasks: tasks of `Continuous(size)` actions.
    table: `[number, size]`. Action i of the new tasks is row i.

  Raises:
    ValueError: if the actions are discrete, or if the table does not fit.
  """
  check_playable(tasks)
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

  Raises:
    ValueError: if the argument is no `PlayableTasks`.
  """
  check_playable(tasks)

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


def lasting(tasks: PlayableTasks) -> PlayableTasks:
  """Returns tasks whose episodes all last to the horizon.

  After an episode's end, rewards are 0, and state and observation stay as they
  are. So a player of trials with K episodes always plays K of them, and gains
  nothing by staying away from an end.

  Raises:
    ValueError: in use, if the tasks return something else than they must.
  """
  tasks = checked(tasks)

  def begin(task: Any, rng: PRNGKey) -> tuple[Any, Array]:
    state, observation = tasks.begin(task, rng)
    return (state, observation, jnp.bool_(False), jnp.int32(0)), observation

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    inner, seen, over, time = state
    new, observation, reward, ended = tasks.step(task, inner, action, rng)
    observation = as_begun("observation", observation, seen)
    inner, seen = jax.tree.map(
      lambda x, old: jnp.where(over, old, x), (new, observation), (inner, seen)
    )
    reward = jnp.where(over, 0, reward)
    time = time + 1
    state = inner, seen, over | ended, time
    return state, seen, reward, time >= tasks.horizon

  return tasks._replace(begin=begin, step=step)


def told(tasks: PlayableTasks) -> PlayableTasks:
  """Returns tasks that show themselves, for a player that need not learn.

  The numbers of the task, as one vector, are appended to the observation, which
  becomes a vector, too. The best policy of these tasks is an upper bound for
  all that learn the task from its rewards.

  Raises:
    ValueError: if the argument is no `PlayableTasks`; in use, if a task has a
      random key.
  """
  check_playable(tasks)

  def shown(task: Any, observation: Array) -> Array:
    leaves = [*map(jnp.asarray, jax.tree.leaves((observation, task)))]
    if any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves):
      raise ValueError("tasks: a task has a key, which cannot be told.")
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
