"""Tasks of reinforcement learning that are drawn once and played many times."""

from collections.abc import Callable
from typing import Any, NamedTuple

from metajax.numerics import check_number
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

  `tasks.trials.Trials` play one episode after the other. Here episodes of one
  task are independent, so that they can run in parallel.

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
  for name, value in {"actions": actions[0], "horizon": horizon}.items():
    if not isinstance(value, int):
      raise ValueError(f"{name}={value!r}: must be an integer, 1 or more.")
    check_number(name, value, at_least=1)
  return PlayableTasks(draw, begin, step, actions, horizon)
