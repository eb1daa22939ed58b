"""Describes the options that only one learner has, for command lines."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Setting(NamedTuple):
  """The facts about a run on which the value of an option may depend.

  Attributes:
    steps: meta-steps of the whole training.
    normalizes: whether the network has normalisation layers.
    inner_lr: step size of the inner optimizer.
    inner_optimizer: name of the inner optimizer.
    said: names of the options that the user gave explicitly.
  """

  steps: int
  normalizes: bool
  inner_lr: float
  inner_optimizer: str
  said: frozenset[str] = frozenset()


def _as_it_is(value: Any, setting: Setting) -> Any:
  del setting
  return value


class Option(NamedTuple):
  """A flag of one learner, and the constructor argument that it sets.

  Attributes:
    name: name of the flag.
    default: default of the flag. Its type (bool, int or float) is the type of
      all values.
    help: help text of the flag.
    low: the least allowed value. None: no limit.
    high: the greatest allowed value. None: no limit.
    argument: name of the argument of the learner's constructor. If empty, it is
      `name`.
    of: `(value, setting) -> value of the argument`. It may raise a
      `ValueError`.
  """

  name: str
  default: bool | int | float
  help: str
  low: float | None = None
  high: float | None = None
  argument: str = ""
  of: Callable[[Any, Setting], Any] = _as_it_is


def values(
  options: tuple[Option, ...], given: dict[str, Any], setting: Setting
) -> dict[str, Any]:
  """Returns the keyword arguments of a learner's constructor.

  Args:
    options: the options of the learner.
    given: values by the name of the option. Missing ones have their defaults.
    setting: see `Setting`.

  Raises:
    ValueError: for a value that is out of its range, or refused by `Option.of`;
      for a name that is no option.
  """
  names = [option.name for option in options]
  for name in given:
    if name not in names:
      raise ValueError(f"{name}: is no option, must be of {names}.")
  arguments = {}
  for option in options:
    value = given.get(option.name, option.default)
    low = -math.inf if option.low is None else option.low
    high = math.inf if option.high is None else option.high
    if not (math.isfinite(value) and low <= value <= high):
      raise ValueError(
        f"{option.name}={value}: must be a number from {low} to {high}."
      )
    arguments[option.argument or option.name] = option.of(value, setting)
  return arguments
