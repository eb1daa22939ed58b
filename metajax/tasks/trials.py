"""Reinforcement learning tasks: trials in which a player learns a new task.

Any environment with gymnax's interface is a distribution of tasks. The term
trial is that of RL^2 (Duan et al. 2016, section 2.2). A trial draws a task, and
the player acts in it for a fixed number of steps, over several episodes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.tasks.environments import action_table, observer
from metajax.types import Array, PRNGKey


class Step(NamedTuple):
  """The input of a player before it acts.

  Attributes:
    observation: the observation of the environment.
    action: int32, the action before.
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
    num_actions: actions are 0, 1, ..., `num_actions - 1`.
    num_steps: the length of a trial.
  """

  reset: Callable[[PRNGKey], tuple[Any, Array]]
  step: Callable[[Any, Array, PRNGKey], tuple[Any, Array, Array, Array]]
  num_actions: int
  num_steps: int


class Task(NamedTuple):
  """A task of `trials` in progress.

  Attributes:
    params: the parameters of the environment.
    start: the observation and state with which every episode begins. With
      `new_starts`, the key of all later starts and the number of those already
      drawn.
    state: the state of the environment.
  """

  params: Any
  start: Any
  state: Any


def trials(
  environment: Any,
  num_steps: int,
  *,
  sample_params: Callable[[PRNGKey], Any] | None = None,
  actions: Any = None,
  new_starts: bool = False,
) -> Trials:
  """Makes trials of an environment with gymnax's interface.

  A task draws the environment's parameters and the start of its episodes. All
  episodes of a task have the same start. `reset_env` therefore draws, for
  example, the goal of a maze or the arms of a bandit once for a task. With
  `new_starts`, each episode draws a new start, and only the parameters define
  the task. The starts depend on the key of the task, not on the player.

  `reset_env` runs once for a task. With `new_starts` it also runs in each step
  that ends an episode. Under `vmap` it runs in each step that ends an episode
  of any task.

  Args:
    environment: an environment with gymnax's `reset_env`, `step_env` and
      `is_truncated`. Its automatic reset is not used. Observations of a
      discrete space become one-hot. Trees of arrays become one vector. Other
      arrays do not change.
    num_steps: the length of a trial, at least 1.
    sample_params: `(rng) -> params`; None: every task has the default
      parameters.
    actions: `[num_actions, ...]`, a table of the environment's actions, for
      environments whose actions are not numbers from 0 on. If actions are
      trees, a tree of such arrays.
    new_starts: whether each episode of a task draws a new start.

  Raises:
    ValueError: if `num_steps` is not positive, if the environment lacks one of
      these methods, or if its actions are not 0, 1, ..., `num_actions - 1` and
      no fitting table is given.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps}: must be 1 or more.")
  num_actions, actions = action_table(environment, actions)
  observe = observer(environment)
  if sample_params is None:
    params = environment.default_params
    sample_params = lambda rng: params  # noqa: E731

  def reset_env(key: PRNGKey, params: Any) -> tuple[Array, Any]:
    observation, state = environment.reset_env(key, params)
    return observe(observation), state

  begin_where = _where_ended(reset_env)

  def reset(rng: PRNGKey) -> tuple[Task, Array]:
    params_key, reset_key = jax.random.split(rng)
    params = sample_params(params_key)
    if new_starts:
      reset_key, episodes_key = jax.random.split(reset_key)
    observation, state = reset_env(reset_key, params)
    start = (observation, state)
    if new_starts:
      start = episodes_key, jnp.int32(0)
    return Task(params, start, state), observation

  def step(
    task: Task, action: Array, rng: PRNGKey
  ) -> tuple[Task, Array, Array, Array]:
    params, start, state = task
    if actions is not None:
      action = jax.tree.map(lambda x: x[action], actions)
    observation, state, reward, terminated, _ = environment.step_env(
      rng, state, action, params
    )
    ended = terminated | environment.is_truncated(state, params)
    seen = observe(observation), state
    if new_starts:
      episodes_key, number = start
      key = jax.random.fold_in(episodes_key, number)
      observation, state = begin_where(ended, key, params, seen)
      start = episodes_key, number + ended
    else:
      observation, state = jax.tree.map(
        lambda new, old: jnp.where(ended, new, old), start, seen
      )
    return Task(params, start, state), observation, reward, ended

  return Trials(reset, step, num_actions, num_steps)


def _where_ended(reset: Callable[[PRNGKey, Any], Any]) -> Callable[..., Any]:
  """Returns `(ended, key, params, old)` -> a fresh start where ended, else old.

  Under `vmap`, a plain `lax.cond` would run both branches in every step. This
  function runs the reset for all tasks at once, and only in a step that ends an
  episode of some task.
  """

  @jax.custom_batching.custom_vmap
  def begin(ended: Array, key: PRNGKey, params: Any, old: Any) -> Any:
    # All arguments have the leading axes of `ended`.
    fresh = reset
    for _ in range(ended.ndim):
      fresh = jax.vmap(fresh)

    def choose(new: Array, old: Array) -> Array:
      axes = [1] * (jnp.ndim(old) - ended.ndim)
      return jnp.where(ended.reshape(*ended.shape, *axes), new, old)

    return jax.lax.cond(
      ended.any(),
      lambda: jax.tree.map(choose, fresh(key, params), old),
      lambda: old,
    )

  @begin.def_vmap
  def _(axis_size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
    arguments = jax.tree.map(
      lambda x, has: x if has else jnp.broadcast_to(x, (axis_size, *x.shape)),
      arguments,
      tuple(batched),
    )
    begun = begin(*arguments)
    return begun, jax.tree.map(lambda _: True, begun)

  return begin


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


def first_step(observation: Array) -> Step:
  """Returns the first input of a player in a task."""
  return Step(
    jnp.asarray(observation, jnp.float32),
    jnp.int32(0),
    jnp.float32(0),
    jnp.bool_(False),
    jnp.bool_(True),
  )


def play(player: Player, tasks: Trials, rng: PRNGKey) -> Trial:
  """Plays one task to its end. Use `jax.vmap` over keys for many tasks."""
  task_key, rng = jax.random.split(rng)
  task, observation = tasks.reset(task_key)

  def one(carry, rng):
    task, memory, step = carry
    act_key, step_key = jax.random.split(rng)
    action, new_memory = player.act(memory, step, act_key)
    task, observation, reward, ended = tasks.step(task, action, step_key)
    new_step = Step(
      jnp.asarray(observation, jnp.float32),
      jnp.asarray(action, jnp.int32),
      jnp.asarray(reward, jnp.float32),
      jnp.asarray(ended, bool),
      jnp.bool_(False),
    )
    return (task, new_memory, new_step), (step, memory)

  keys = jax.random.split(rng, tasks.num_steps)
  (_, memory, step), past = jax.lax.scan(
    one, (task, player.start(), first_step(observation)), keys
  )
  return Trial(
    *jax.tree.map(
      lambda xs, x: jnp.concatenate([xs, jnp.asarray(x)[None]]),
      past,
      (step, memory),
    )
  )
