"""What a learner's own options are called, and how they are said in words."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Setting(NamedTuple):
  """What the value of an option may depend on.

  Attributes:
    steps: meta-steps of the whole training.
    normalizes: whether the network has normalisations.
    inner_lr: step size of the inner optimizer.
    inner_optimizer: its name.
    said: the options that were given, and are no defaults.
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
  """A flag that one learner alone has, and the argument that it becomes.

  Attributes:
    name: of the flag.
    default: of the flag; its type (bool, int or float) is that of all values.
    help: of the flag.
    low: the least value.
    high: the greatest.
    argument: of the learner's constructor; default: `name`.
    of: `(value, setting) -> argument's value`; may raise a `ValueError`.
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
  """Returns the arguments of a constructor.

  Args:
    options: those of the learner.
    given: values by name; those that are not there have their defaults.
    setting: see `Setting`.

  Raises:
    ValueError: for a value that is not allowed.
  """
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
