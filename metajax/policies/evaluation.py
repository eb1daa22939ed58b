"""Returns of new tasks after 0, 1, 2, ... inner steps."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metajax.numerics import check_counts, check_key
from metajax.policies.protocol import PolicyLearner
from metajax.policies.rollouts import Rollouts, play_and_adapt
from metajax.tasks.playable import PlayableTasks
from metajax.types import Array, Params, PRNGKey


def played_steps(
  learner: PolicyLearner, num_steps: int, num_episodes: int
) -> Callable[[Params, Any, PRNGKey], Rollouts]:
  """Returns `(params, task, rng) -> rollouts` before and after each inner step.

  Args:
    learner: the learner.
    num_steps: the number of inner steps, K.
    num_episodes: episodes for each inner step, E. The same episodes are scored.

  Returns:
    A function whose rollouts are `[K + 1, E, T, ...]`.
  """
  check_counts(num_steps=num_steps, at_least=0)
  check_counts(num_episodes=num_episodes)

  def play(params: Params, task: Any, rng: PRNGKey) -> Rollouts:
    rollouts, _ = play_and_adapt(
      lambda params, rng: learner.play(params, task, rng, num_episodes),
      learner.adapt,
      params,
      rng,
      num_steps,
    )
    return rollouts

  return play


def played_tasks(
  learner: PolicyLearner,
  tasks: PlayableTasks,
  *,
  num_steps: int,
  num_episodes: int,
  tasks_at_once: int = 20,
) -> Callable[[Params, PRNGKey, int], tuple[Any, Rollouts]]:
  """Returns `(params, rng, num_tasks) -> (drawn, rollouts)` of new tasks.

  It compiles one program, of `tasks_at_once` tasks, for any number of tasks.

  Args:
    learner: the learner.
    tasks: the tasks to draw. Their episodes are those of the tasks with which
      the learner was built, and as long.
    num_steps: inner steps, K.
    num_episodes: episodes for each inner step, E.
    tasks_at_once: tasks that are played in parallel.

  Returns:
    A function whose `rng` fixes the tasks and all that happens in them. It
    returns the tasks `[num_tasks, ...]` and the rollouts `[num_tasks, K + 1, E,
    T, ...]`. A call with at least as many tasks has the same first tasks.
  """
  return over_new_tasks(
    _one_task(learner, tasks, num_steps, num_episodes), tasks_at_once
  )


def over_new_tasks(
  one: Callable[[Params, PRNGKey], Any], tasks_at_once: int
) -> Callable[[Params, PRNGKey, int], Any]:
  """Returns `(params, rng, num_tasks) -> results [num_tasks, ...]`.

  It compiles one program, of `tasks_at_once` tasks, for any number of tasks.

  Args:
    one: `(params, key) -> results` of one new task. The key fixes the task.
    tasks_at_once: tasks that are computed in parallel.
  """
  check_counts(tasks_at_once=tasks_at_once)
  several = jax.jit(jax.vmap(one, in_axes=(None, 0)))

  def play(params: Params, rng: PRNGKey, num_tasks: int) -> Any:
    check_key(rng)
    check_counts(num_tasks=num_tasks)
    # Several devices that have the parameters would each play all tasks.
    params = jax.device_get(params)
    chunks = -(-num_tasks // tasks_at_once)
    keys = jax.random.split(rng, chunks * tasks_at_once)
    played = [
      jax.device_get(several(params, keys[i : i + tasks_at_once]))
      for i in range(0, len(keys), tasks_at_once)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x)[:num_tasks], *played)

  return play


def returns_by_step(
  learner: PolicyLearner,
  tasks: PlayableTasks,
  params: Params,
  rng: PRNGKey,
  *,
  num_tasks: int,
  num_steps: int,
  num_episodes: int,
  tasks_at_once: int = 20,
) -> Array:
  """Plays new tasks, and returns their mean returns after each inner step.

  Args:
    learner: the learner.
    tasks: the tasks to draw. Their episodes are those of the tasks with which
      the learner was built, and as long.
    params: the meta-parameters.
    rng: fixes the tasks and all that happens in them.
    num_tasks: the number of tasks.
    num_steps: inner steps, K.
    num_episodes: episodes for each inner step.
    tasks_at_once: tasks that are played in parallel, for the memory.

  Returns:
    Returns without discount, means over episodes, `[num_tasks, K + 1]`.

  Raises:
    ValueError: if a number is out of its range.
  """
  check_key(rng)
  check_counts(num_tasks=num_tasks, tasks_at_once=tasks_at_once)
  play = _one_task(learner, tasks, num_steps, num_episodes)

  def one(key: PRNGKey) -> Array:
    return play(params, key)[1].returns.mean(-1)

  keys = jax.random.split(rng, num_tasks)
  return jax.lax.map(one, keys, batch_size=min(tasks_at_once, num_tasks))


def _one_task(
  learner: PolicyLearner,
  tasks: PlayableTasks,
  num_steps: int,
  num_episodes: int,
) -> Callable[[Params, PRNGKey], tuple[Any, Rollouts]]:
  """Returns `(params, rng) -> (task, rollouts)` of one new task."""
  play = played_steps(learner, num_steps, num_episodes)

  def one(params: Params, key: PRNGKey) -> tuple[Any, Rollouts]:
    task_key, play_key = jax.random.split(key)
    task = tasks.draw(task_key)
    return task, play(params, task, play_key)

  return one
