"""Reinforcement learning tasks: trials in which a player learns a new one.

Any environment with gymnax's interface is a distribution of tasks. A trial is
what RL^2 (Duan et al. 2016, section 2.2) calls one: a task is drawn, and a
player lives in it for a fixed number of steps, over all its episodes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.types import Array, PRNGKey


class Step(NamedTuple):
  """What a player sees before it acts.

  Attributes:
    observation: of the environment.
    action: int32, the action that led here.
    reward: what it brought.
    ended: whether it ended an episode; the observation begins the next.
    first: whether this is the first step of a task. Then action, reward and
      ended are of no task and zero.
  """

  observation: Array
  action: Array
  reward: Array
  ended: Array
  first: Array


class Player(NamedTuple):
  """A fast learner: whatever it learns of a task is in its memory.

  Attributes:
    start: `() -> memory` of one that knows nothing of its task.
    act: `(memory, step, rng) -> (action, memory)`.
  """

  start: Callable[[], Any]
  act: Callable[[Any, Step, PRNGKey], tuple[Array, Any]]


class Trials(NamedTuple):
  """A distribution of tasks, all of the same number of steps.

  Attributes:
    reset: `(rng) -> (task, observation)` draws a task and begins it.
    step: `(task, action, rng) -> (task, observation, reward, ended)`.
    num_actions: actions are 0, 1, ..., `num_actions - 1`.
    num_steps: the length of a trial.
  """

  reset: Callable[[PRNGKey], tuple[Any, Array]]
  step: Callable[[Any, Array, PRNGKey], tuple[Any, Array, Array, Array]]
  num_actions: int
  num_steps: int


def trials(
  environment: Any,
  num_steps: int,
  *,
  sample_params: Callable[[PRNGKey], Any] | None = None,
  actions: Array | None = None,
) -> Trials:
  """Makes trials of an environment with gymnax's interface.

  A task is a draw of the environment's parameters, and of the key that every
  episode of the task is reset with: what `reset_env` draws (the goal of a maze,
  the arms of a bandit) is drawn anew for a task, not for an episode.

  Args:
    environment: with `reset_env`, `step_env` and `is_truncated`, as gymnax has
      them; its own automatic reset is not used.
    num_steps: the length of a trial, at least 1.
    sample_params: `(rng) -> params`; None: the default ones, in every task.
    actions: `[num_actions, ...]`, what the environment is given for each
      action, for those whose actions are not numbers from 0 on.

  Raises:
    ValueError: if `num_steps` is not positive.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps}: must be 1 or more.")
  if sample_params is None:
    params = environment.default_params
    sample_params = lambda rng: params  # noqa: E731

  def reset(rng: PRNGKey) -> tuple[Any, Array]:
    params_key, reset_key = jax.random.split(rng)
    params = sample_params(params_key)
    observation, state = environment.reset_env(reset_key, params)
    return (params, reset_key, state), observation

  def step(
    task: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    params, reset_key, state = task
    given = action if actions is None else actions[action]
    observation, state, reward, terminated, _ = environment.step_env(
      rng, state, given, params
    )
    ended = terminated | environment.is_truncated(state, params)
    begun = environment.reset_env(reset_key, params)
    observation, state = jax.tree.map(
      lambda new, old: jnp.where(ended, new, old), begun, (observation, state)
    )
    return (params, reset_key, state), observation, reward, ended

  num_actions = environment.num_actions if actions is None else actions.shape[0]
  return Trials(reset, step, num_actions, num_steps)


def with_last_observation(tasks: Trials) -> Trials:
  """Shows a player the observation before, too: the whole of a transition.

  Observations become `[2 observation]`, flat, the second half being zero at the
  first step of a task. A player with a memory learns nothing new by it, but is
  spared to remember where it was when it did what it is now paid for.
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
  """A task as it was played, `T = num_steps`.

  Attributes:
    steps: `[T + 1, ...]`; the last is what the last action led to.
    memories: `[T + 1, ...]`, the player's memory before each step.
  """

  steps: Step
  memories: Any

  @property
  def rewards(self) -> Array:
    """`[T]`, of the actions in turn."""
    return self.steps.reward[1:]


def first_step(observation: Array) -> Step:
  """Returns what a player sees first in a task."""
  return Step(
    jnp.asarray(observation, jnp.float32),
    jnp.int32(0),
    jnp.float32(0),
    jnp.bool_(False),
    jnp.bool_(True),
  )


def play(player: Player, tasks: Trials, rng: PRNGKey) -> Trial:
  """Plays one task to its end; vmap it over keys for many."""
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
