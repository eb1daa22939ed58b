"""Meta-test of PEARL: trials in new tasks."""

from collections.abc import Callable
from typing import Any

import jax

from metajax.numerics import check_counts
from metajax.off_policy.agent import Agent
from metajax.off_policy.transitions import Episodes
from metajax.off_policy.trials import play_trial
from metajax.policies.evaluation import over_new_tasks
from metajax.tasks.playable import PlayableTasks
from metajax.types import Params, PRNGKey


def played_trials(
  agent: Agent,
  tasks: PlayableTasks,
  *,
  num_episodes: int,
  deterministic: bool = False,
  tasks_at_once: int = 20,
) -> Callable[[Params, PRNGKey, int], tuple[Any, Episodes]]:
  """Returns `(params, rng, num_tasks) -> (drawn, trials)` of new tasks.

  It compiles one program, of `tasks_at_once` tasks, for any number of tasks.
  Tasks are drawn as in `policies.played_tasks`: the same key gives the same.

  Args:
    agent: from `pearl_agent`.
    tasks: the tasks.
    num_episodes: episodes of a trial, K. See `play_trial`.
    deterministic: take the mode of an action rather than a sample.
    tasks_at_once: tasks that are played in parallel.

  Returns:
    A function whose `rng` fixes the tasks and all that happens in them. It
    returns the tasks `[num_tasks, ...]` and the episodes `[num_tasks, K, T]`,
    whose `returns` are by episode.
  """
  check_counts(num_episodes=num_episodes)

  def one(params: Params, key: PRNGKey) -> tuple[Any, Episodes]:
    task_key, play_key = jax.random.split(key)
    task = tasks.draw(task_key)
    return task, play_trial(
      agent,
      params,
      tasks,
      task,
      play_key,
      num_episodes,
      deterministic=deterministic,
    )

  return over_new_tasks(one, tasks_at_once)
