"""Reinforcement learning tasks: trials in which a player learns a new task.

The term trial is that of RL^2 (Duan et al. 2016, section 2.2). A trial draws a
task, and the player acts in it for a fixed number of steps, over several
episodes. `PlayableTasks` and environments with gymnax's interface become trials
by `trials_of` and `trials`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts, check_kind
from metajax.tasks.environment_tasks import environment_tasks
from metajax.tasks.environments import action_table
from metajax.tasks.playable import (
  Actions,
  Continuous,
  Discrete,
  PlayableTasks,
  as_actions,
  as_begun,
  checked,
)
from metajax.tasks.starts import where_ended
from metajax.types import Array, PRNGKey


class Step(NamedTuple):
  """The input of a player before it acts.

  Attributes:
    observation: the observation of the environment.
    action: the action before: int32, or float32 `[size]`.
    reward: the reward of that action.
    ended: whether that action ended an episode. The observation is then the
      first of the next episode.
    first: whether this is the first step of a task. Then action, reward and
      ended are zero.
  """

  observation: Array
  action: Array
  reward: Array
  ended: Array
  first: Array


class Player(NamedTuple):
  """A fast learner. Its memory contains all that it has learned of a task.

  Attributes:
    start: `() -> memory`, the memory at the beginning of a task.
    act: `(memory, step, rng) -> (action, memory)`.
  """

  start: Callable[[], Any]
  act: Callable[[Any, Step, PRNGKey], tuple[Array, Any]]


class Trials(NamedTuple):
  """A distribution of tasks with the same number of steps.

  Attributes:
    reset: `(rng) -> (task, observation)`. Draws a task and begins it.
    step: `(task, action, rng) -> (task, observation, reward, ended)`.
    actions: what an action is. A number n stands for `Discrete(n)`.
    num_steps: the length of a trial.
  """

  reset: Callable[[PRNGKey], tuple[Any, Array]]
  step: Callable[[Any, Array, PRNGKey], tuple[Any, Array, Array, Array]]
  actions: Actions | int
  num_steps: int

  @property
  def num_actions(self) -> int:
    """The number of discrete actions.

    Raises:
      ValueError: if actions are continuous.
    """
    actions = as_actions(self.actions)
    if not isinstance(actions, Discrete):
      raise ValueError(
        f"tasks: their actions are {actions}, but this player chooses from "
        "Discrete(number); give those to choose from, "
        "playable.discretized(tasks, an array [number, size])."
      )
    return actions.number


class Task(NamedTuple):
  """A task of trials in progress.

  Attributes:
    params: what `draw` returned. For an environment, its parameters.
    start: the state and observation with which every episode begins. With
      `new_starts`, the key of all later starts and the number of those already
      drawn.
    state: the state of the episode.
  """

  params: Any
  start: Any
  state: Any


def check_trials(tasks: Trials) -> None:
  """Raises a `ValueError` if the argument is no `Trials`."""
  if not isinstance(tasks, Trials):
    raise ValueError(
      f"tasks: {type(tasks).__name__} given, must be Trials; trials_of(tasks, "
      "num_steps) makes them of PlayableTasks."
    )


def trials(
  environment: Any,
  num_steps: int,
  *,
  sample_params: Callable[[PRNGKey], Any] | None = None,
  actions: Any = None,
  new_starts: bool = False,
) -> Trials:
  """Makes trials of an environment with gymnax's interface.

  They are `trials_of` its `environment_tasks`. By default all episodes of a
  task have the same start. `reset_env` therefore draws, for example, the goal
  of a maze or the arms of a bandit once for a task.

  Args:
    environment: see `environment_tasks`.
    num_steps: the length of a trial, at least 1.
    sample_params: see `environment_tasks`.
    actions: see `environment_tasks`. Actions that are not 0, 1, ...,
      `num_actions - 1` need a table.
    new_starts: whether each episode of a task draws a new start.

  Raises:
    ValueError: if `num_steps` is not positive, if the environment lacks one of
      these methods, or if its actions are not 0, 1, ..., `num_actions - 1` and
      no fitting table is given.
  """
  check_counts(num_steps=num_steps)
  action_table(environment, actions)  # Raises for vectors without a table.
  tasks = environment_tasks(
    environment,
    num_steps + 1,  # The environment ends its episodes itself.
    sample_params=sample_params,
    actions=actions,
  )
  return trials_of(tasks, num_steps, new_starts=new_starts)


def trials_of(
  tasks: PlayableTasks, num_steps: int, *, new_starts: bool = True
) -> Trials:
  """Makes trials of playable tasks: episodes one after the other.

  An episode ends where the task says so, or at the tasks' horizon. The next one
  begins in the same step. The starts depend on the key of the task, not on the
  player.

  `begin` runs once for a task. With `new_starts` it also runs in each step that
  ends an episode. Under `vmap` it runs in each step that ends an episode of any
  task.

  Args:
    tasks: the tasks.
    num_steps: the length of a trial, at least 1.
    new_starts: whether each episode begins anew. If not, all episodes of a
      trial have the start of the first.

  Raises:
    ValueError: if `num_steps` is not positive; in use, if the tasks return
      something else than they must.
  """
  check_counts(num_steps=num_steps)
  tasks = checked(tasks)
  if tasks.horizon <= num_steps:
    tasks = _ended_by_horizon(tasks)

  def begin(rng: PRNGKey, params: Any) -> tuple[Any, Array]:
    return tasks.begin(params, rng)

  begin_where = where_ended(begin)

  def reset(rng: PRNGKey) -> tuple[Task, Array]:
    draw_key, begin_key = jax.random.split(rng)
    params = tasks.draw(draw_key)
    if new_starts:
      begin_key, episodes_key = jax.random.split(begin_key)
    state, observation = begin(begin_key, params)
    start = state, observation
    if new_starts:
      start = episodes_key, jnp.int32(0)
    return Task(params, start, state), observation

  def step(
    task: Task, action: Array, rng: PRNGKey
  ) -> tuple[Task, Array, Array, Array]:
    params, start, state = task
    *seen, reward, ended = tasks.step(params, state, action, rng)
    first = jax.eval_shape(begin, rng, params)[1] if new_starts else start[1]
    seen[1] = as_begun("observation", seen[1], first)
    if new_starts:
      episodes_key, number = start
      key = jax.random.fold_in(episodes_key, number)
      state, observation = begin_where(ended, key, params, tuple(seen))
      start = episodes_key, number + ended
    else:
      state, observation = jax.tree.map(
        lambda new, old: jnp.where(ended, new, old), start, tuple(seen)
      )
    return Task(params, start, state), observation, reward, ended

  return Trials(reset, step, tasks.actions, num_steps)


def _ended_by_horizon(tasks: PlayableTasks) -> PlayableTasks:
  """Returns the tasks with episodes that end themselves at the horizon."""

  def begin(task: Any, rng: PRNGKey) -> tuple[Any, Array]:
    state, observation = tasks.begin(task, rng)
    return (state, jnp.int32(0)), observation

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    inner, time = state
    inner, observation, reward, ended = tasks.step(task, inner, action, rng)
    time = time + 1
    return (inner, time), observation, reward, ended | (time >= tasks.horizon)

  return tasks._replace(begin=begin, step=step)


def with_last_observation(tasks: Trials) -> Trials:
  """Adds the last observation to each observation, to show whole transitions.

  Observations become flat and twice as long. The second half is the last
  observation, and zero at the first step of a task. This is no new information
  for a player with a memory. But the player need not remember the observation
  that it acted on to interpret the reward.
  """

  def reset(rng: PRNGKey) -> tuple[Any, Array]:
    task, observation = tasks.reset(rng)
    flat = jnp.ravel(observation)
    return (task, flat), jnp.concatenate([flat, jnp.zeros_like(flat)])

  def step(
    task_and_last: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    task, last = task_and_last
    task, observation, reward, ended = tasks.step(task, action, rng)
    flat = jnp.ravel(observation)
    return (task, flat), jnp.concatenate([flat, last]), reward, ended

  return tasks._replace(reset=reset, step=step)


class Trial(NamedTuple):
  """The record of one played task, `T = num_steps`.

  Attributes:
    steps: `[T + 1, ...]`. The last step is the result of the last action.
    memories: `[T + 1, ...]`, the player's memory before each step.
  """

  steps: Step
  memories: Any

  @property
  def rewards(self) -> Array:
    """The rewards of the actions in order, `[T]`."""
    return self.steps.reward[1:]


def first_step(observation: Array, actions: Actions | int = 1) -> Step:
  """Returns the first input of a player in a task of such actions."""
  actions = as_actions(actions)
  none = jnp.int32(0)
  if isinstance(actions, Continuous):
    none = jnp.zeros(actions.size, jnp.float32)
  return Step(
    jnp.asarray(observation, jnp.float32),
    none,
    jnp.float32(0),
    jnp.bool_(False),
    jnp.bool_(True),
  )


def play(player: Player, tasks: Trials, rng: PRNGKey) -> Trial:
  """Plays one task to its end. Use `jax.vmap` over keys for many tasks.

  Raises:
    ValueError: if the tasks are no trials or the player is none, or if its
      action is not what the tasks say, an integer scalar or a vector of real
      numbers.
  """
  check_trials(tasks)
  check_kind("player", player, Player)
  task_key, rng = jax.random.split(rng)
  task, observation = tasks.reset(task_key)
  first = first_step(observation, tasks.actions)

  def one(carry, rng):
    task, memory, step = carry
    act_key, step_key = jax.random.split(rng)
    action, new_memory = player.act(memory, step, act_key)
    _check_action(action, first.action)
    task, observation, reward, ended = tasks.step(task, action, step_key)
    new_step = Step(
      jnp.asarray(observation, jnp.float32),
      jnp.asarray(action, first.action.dtype),
      jnp.asarray(reward, jnp.float32),
      jnp.asarray(ended, bool),
      jnp.bool_(False),
    )
    return (task, new_memory, new_step), (step, memory)

  keys = jax.random.split(rng, tasks.num_steps)
  (_, memory, step), past = jax.lax.scan(
    one, (task, player.start(), first), keys
  )
  return Trial(
    *jax.tree.map(
      lambda xs, x: jnp.concatenate([xs, jnp.asarray(x)[None]]),
      past,
      (step, memory),
    )
  )


def _check_action(action: Array, like: Array) -> None:
  """Raises a `ValueError` for an action that the tasks do not have."""
  kind, shape = jnp.result_type(action), jnp.shape(action)
  discrete = jnp.issubdtype(like.dtype, jnp.integer)
  wanted = jnp.integer if discrete else jnp.floating
  if not jnp.issubdtype(kind, wanted) or shape != like.shape:
    needed = "an integer scalar" if discrete else f"real numbers {like.shape}"
    raise ValueError(f"player: its action is {kind} {shape}, must be {needed}.")
