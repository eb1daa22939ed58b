"""Playable tasks of environments with gymnax's interface."""

from collections.abc import Callable
from typing import Any

import jax

from metajax.tasks.environments import (
  action_table,
  box_size,
  check_environment,
  observer,
)
from metajax.tasks.playable import (
  Actions,
  Continuous,
  Discrete,
  PlayableTasks,
  playable,
)
from metajax.types import Array, PRNGKey


def environment_tasks(
  environment: Any,
  horizon: int,
  *,
  sample_params: Callable[[PRNGKey], Any] | None = None,
  actions: Any = None,
) -> PlayableTasks:
  """Makes tasks of an environment with gymnax's interface.

  A task is the environment's parameters. Each episode begins with `reset_env`.
  If that draws what should be the same in all episodes of a task, such as the
  goal of a maze, wrap the result in `playable.same_start`.

  Args:
    environment: an environment with gymnax's `reset_env`, `step_env` and
      `is_truncated`. Its automatic reset is not used. Observations of a
      discrete space become one-hot. Trees of arrays become one vector. Other
      arrays do not change.
    horizon: the largest number of steps of an episode. The environment may end
      an episode sooner.
    sample_params: `(rng) -> params`; None: every task has the default
      parameters.
    actions: `[num_actions, ...]`, a table of actions to choose from, or a tree
      of such arrays. None: the environment's own. They are `Discrete(n)` if
      they are 0, 1, ..., n - 1, and `Continuous(d)` if they are vectors.

  Raises:
    ValueError: if the environment lacks one of these methods, if its actions
      are of neither kind and no fitting table is given, or if the horizon is
      not positive.
  """
  check_environment(environment)
  size = box_size(environment) if actions is None else None
  spec: Actions
  if size is None:
    number, table = action_table(environment, actions)
    spec = Discrete(number)
  else:
    spec, table = Continuous(size), None
  observe = observer(environment)
  if sample_params is None:
    params = environment.default_params
    sample_params = lambda rng: params  # noqa: E731

  def begin(params: Any, rng: PRNGKey) -> tuple[Any, Array]:
    observation, state = environment.reset_env(rng, params)
    return state, observe(observation)

  def step(
    params: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    if table is not None:
      action = jax.tree.map(lambda x: x[action], table)
    observation, state, reward, terminated, _ = environment.step_env(
      rng, state, action, params
    )
    ended = terminated | environment.is_truncated(state, params)
    return state, observe(observation), reward, ended

  return playable(sample_params, begin, step, actions=spec, horizon=horizon)
