"""The points of a sweep: parses and checks `--sweep`."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from metajax.learners import OPTIONS
from metajax.runs.flags import FLAGS
from metajax.runs.folder import NOT_CONFIG

EXAMPLE = "--sweep='inner_lr=0.1,0.4 seed=0..4'"
MOST = 10_000
# A preset may be swept, because its values define a run.
NOT_SWEPT = {*NOT_CONFIG} - {"preset"}


class Point(NamedTuple):
  """One run of a sweep.

  Attributes:
    values: the values of the swept flags by name, in the order of `--sweep`.
    arguments: the same values as words of a command.
  """

  values: dict[str, Any]
  arguments: tuple[str, ...]

  @property
  def name(self) -> str:
    """The name of the run's folder, such as `inner_lr=0.1,seed=0`."""
    return ",".join(f"{k}={shown(v)}" for k, v in self.values.items())


def shown(value: Any) -> str:
  """Writes a flag's value with characters that a folder's name can have."""
  text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
  return re.sub(r"[^\w.+-]", "_", text)


def points(text: str, known: Sequence[str]) -> list[Point]:
  """Returns every combination of the values. The last flag varies fastest.

  Args:
    text: flags and their values, `NAME=VALUE,VALUE NAME=FIRST..LAST`.
    known: the script's own flags.

  Raises:
    ValueError: if the text has another form, if a flag cannot be swept, if a
      flag does not accept a value, or if it is of another point's learner.
  """
  axes: dict[str, list[tuple[str, Any]]] = {}
  for word in text.split():
    name, equals, given = word.partition("=")
    name = name.lstrip("-")
    if not equals or not name or not all(given.split(",")):
      raise ValueError(
        f"--sweep: {word!r} must be FLAG=VALUE,VALUE or FLAG=FIRST..LAST, as "
        f"in {EXAMPLE}."
      )
    _check_name(name, known)
    if name in axes:
      raise ValueError(f"--sweep: {name} is there twice: give it once.")
    axes[name] = _values(name, given)
  if not axes:
    raise ValueError(
      f"--sweep: is empty: give flags and their values, as in {EXAMPLE}."
    )
  number = 1
  for values in axes.values():
    number *= len(values)
  if number > MOST:
    raise ValueError(f"--sweep: has {number} points, may have {MOST} at most.")
  found = [
    Point(
      {name: value for name, (_, value) in zip(axes, chosen, strict=True)},
      tuple(
        f"--{name}={word}" for name, (word, _) in zip(axes, chosen, strict=True)
      ),
    )
    for chosen in itertools.product(*axes.values())
  ]
  for point in found:
    _check_options(point.values)
  return found


def _check_options(values: Mapping[str, Any]) -> None:
  """Refuses options of other learners, before another point trains."""
  if "learner" not in values and ("learner" not in FLAGS or "preset" in values):
    return
  learner = values.get("learner") or FLAGS.learner
  for other, options in OPTIONS.items() if learner in OPTIONS else ():
    for option in options:
      name, own = option.name, "metajax.runs.learner_options"
      if other == learner or FLAGS.find_module_defining_flag(name) != own:
        continue
      if name in values or FLAGS[name].present:
        raise ValueError(
          f"--sweep: --{name} is for --learner={other}, but points are of "
          f"{learner}: leave it out, or sweep each learner by itself."
        )


def _check_name(name: str, known: Sequence[str]) -> None:
  if name not in known:
    raise ValueError(
      f"--sweep: this script has no flag {name!r}; --help shows those it has."
    )
  if name in NOT_SWEPT:
    raise ValueError(
      f"--sweep: --{name} says where or how a run is made, not what it is, so "
      "its points would be the same run: sweep another flag."
    )
  if FLAGS[name].present:
    raise ValueError(
      f"--sweep: --{name} is given beside the sweep, too: leave one of the two "
      "out."
    )


def _values(name: str, given: str) -> list[tuple[str, Any]]:
  """Returns pairs of a word and its value, with ranges expanded."""
  words: list[str] = []
  integers = isinstance(FLAGS[name].parser, flags.IntegerParser)
  for word in given.split(","):
    ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", word)
    if not ends:
      words.append(word)
      continue
    first, last = map(int, ends.groups())
    if not integers or first > last or last - first >= MOST:
      raise ValueError(
        f"--sweep: {name}={word}: a range is FIRST..LAST of a flag of whole "
        f"numbers, FIRST at most LAST, and {MOST} numbers at most."
      )
    words += map(str, range(first, last + 1))
  values = [(word, _parsed(name, word)) for word in words]
  names = [shown(value) for _, value in values]
  twice = [word for word in names if names.count(word) > 1]
  if twice:
    raise ValueError(
      f"--sweep: {name}={twice[0]} is there twice: give it once."
    )
  return values


def _parsed(name: str, word: str) -> Any:
  """Returns the value of a word, checked by the flag's validators."""
  flag = FLAGS[name]
  before = flag.value, flag.using_default_value
  try:
    value = flag.parser.parse(word)
    many = isinstance(flag, flags.MultiFlag)
    setattr(FLAGS, name, [value] if many else value)
  except (ValueError, TypeError, flags.Error) as error:
    reason = str(error).removeprefix(f"flag --{name}={word}: ")
    raise ValueError(f"--sweep: {name}={word}: {reason}") from error
  else:
    return flag.value
  finally:
    flag.value, flag.using_default_value = before
