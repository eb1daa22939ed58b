"""Returns of new tasks after 0, 1, 2, ... inner steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.numerics import check_number
from metajax.policies.policy_learner import PolicyLearner
from metajax.policies.rollouts import Rollouts
from metajax.tasks.playable import PlayableTasks
from metajax.types import Array, Params, PRNGKey


def played_steps(
  learner: PolicyLearner, num_steps: int, num_episodes: int
) -> Callable[[Params, Any, PRNGKey], list[Rollouts]]:
  """Returns `(params, task, rng) -> rollouts` before and after each inner step.

  Args:
    learner: the learner.
    num_steps: the number of inner steps.
    num_episodes: episodes for each inner step. The same episodes are scored.
  """
  check_number("num_steps", num_steps, at_least=0)
  check_number("num_episodes", num_episodes, at_least=1)

  def play(params: Params, task: Any, rng: PRNGKey) -> list[Rollouts]:
    played: list[Rollouts] = []
    for k, key in enumerate(jax.random.split(rng, num_steps + 1)):
      if k:
        params = learner.adapt(params, played[-1], k - 1)
      played.append(learner.play(params, task, key, num_episodes))
    return played

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
    tasks: the tasks.
    params: the meta-parameters.
    rng: fixes the tasks and all that happens in them.
    num_tasks: the number of tasks.
    num_steps: inner steps, K.
    num_episodes: episodes for each inner step.
    tasks_at_once: tasks that are played in parallel, for the memory.

  Returns:
    Returns without discount, means over episodes, `[num_tasks, K + 1]`.
  """
  play = played_steps(learner, num_steps, num_episodes)

  def one(key: PRNGKey) -> Array:
    task_key, play_key = jax.random.split(key)
    played = play(params, tasks.draw(task_key), play_key)
    return jnp.stack([rollouts.returns.mean() for rollouts in played])

  keys = jax.random.split(rng, num_tasks)
  return jax.lax.map(one, keys, batch_size=min(tasks_at_once, num_tasks))
