"""The flags that every training script has."""

import math
import sys
from collections.abc import Iterable
from typing import Any, get_args

from absl import flags

from metajax import learners
from metajax.inner_loop import Memory
from metajax.learners.registry import register_installed

FLAGS = flags.FLAGS

try:
  register_installed()
except ValueError as error:
  sys.exit(f"error: {error}")

flags.DEFINE_string(
  "workdir",
  None,
  "Folder of this run. An interrupted run with the same flags continues where "
  "it stopped. Default: runs/EXPERIMENT-HASH, where HASH is a hash of the "
  "flags.",
)
MAX_INTEGER = MAX_SEED = 2**31 - 1
flags.DEFINE_integer(
  "seed",
  0,
  "Seed of the training run.",
  lower_bound=0,
  upper_bound=MAX_SEED,
)
flags.DEFINE_integer(
  "eval_seed",
  0,
  "Seed of the evaluation tasks.",
  lower_bound=0,
  upper_bound=MAX_SEED,
)
flags.DEFINE_enum(
  "learner", "maml", sorted(learners.REGISTRY), "The meta-learning algorithm."
)
flags.DEFINE_integer(
  "steps", 10_000, "Number of meta-training steps.", lower_bound=1
)
flags.DEFINE_integer(
  "meta_batch", 32, "Number of tasks per meta-training step.", lower_bound=1
)
flags.DEFINE_integer(
  "task_chunk",
  0,
  "Number of tasks whose meta-gradient a device computes at once. Fewer tasks "
  "need less memory. At most the number of tasks of a device. 0: chosen by the "
  "memory of one task.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "inner_steps",
  1,
  "Number of inner gradient steps on each task in training.",
  lower_bound=0,
)
flags.DEFINE_float(
  "inner_lr",
  0.01,
  "Step size of the inner optimizer, for the mean loss of the support set.",
  lower_bound=0.0,
)
flags.DEFINE_float(
  "outer_lr",
  1e-3,
  "Step size of the outer optimizer, which updates the meta-parameters.",
  lower_bound=0.0,
)
flags.DEFINE_enum(
  "outer_schedule",
  "constant",
  ["constant", "cosine", "linear"],
  "Schedule of the outer step size over the run: constant, or a cosine or "
  "linear decay to zero.",
)
flags.DEFINE_enum(
  "memory",
  "auto",
  get_args(Memory),
  "What the inner loop stores for its backward pass. plain: everything. remat: "
  "the parameters between steps. nested: the parameters between blocks of "
  "steps. mixed: the parameters between steps and the inner gradients, with "
  "forward-over-reverse differentiation. auto: mixed if it is correct for the "
  "loss, otherwise remat.",
)
flags.DEFINE_integer(
  "eval_tasks", 600, "Number of tasks of the test evaluation.", lower_bound=2
)
flags.DEFINE_integer(
  "log_every",
  100,
  "Number of training steps between two lines of metrics.",
  lower_bound=1,
)
flags.DEFINE_integer(
  "eval_every",
  1000,
  "Number of training steps between two validations.",
  lower_bound=1,
)
flags.DEFINE_integer(
  "checkpoint_every",
  1000,
  "Number of training steps between two checkpoints.",
  lower_bound=1,
)
flags.DEFINE_string(
  "compile_cache",
  None,
  "Folder for compiled programs, so that later runs need not compile them "
  "again. It may be deleted at any time. Empty: no such folder. Default: "
  "$JAX_COMPILATION_CACHE_DIR, or metajax in the user's cache folder.",
)
flags.DEFINE_bool(
  "must_save",
  True,
  "Stop if a checkpoint cannot be written, for example on a full disk. If "
  "false, warn and continue.",
)
flags.DEFINE_float(
  "stall_seconds",
  300.0,
  "Warn if no training progress was made for this many seconds. A step usually "
  "takes about a second or less. 0: never.",
  lower_bound=0.0,
  upper_bound=1e6,
)
flags.DEFINE_string(
  "profile",
  None,
  "Folder for a profiler's trace of the whole run, see scripts/profile.sh.",
)
flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")


def define_data_dir(more: str = "") -> None:
  """Adds --data_dir for scripts that need Omniglot. `more` extends its help."""
  flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with Omniglot's images_background.zip and images_evaluation.zip"
    f"{more}. Default: $METAJAX_DATA_DIR.",
  )


class _Numbers(flags.ArgumentParser):
  """Reads `64` as an integer, and `96,192` as a list of integers."""

  def __init__(self, lower_bound: int):
    super().__init__()
    self.one = flags.IntegerParser(lower_bound=lower_bound)

  def parse(self, argument: Any) -> int | list[int]:
    parts = argument.split(",") if isinstance(argument, str) else [argument]
    numbers = [self.one.parse(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers

  def flag_type(self) -> str:
    return "integers"


class _WithCommas(flags.ArgumentSerializer):
  def serialize(self, value: Any) -> str:
    several = isinstance(value, list)
    return ",".join(map(str, value)) if several else str(value)


def define_numbers(
  name: str, default: int, text: str, *, lower_bound: int
) -> None:
  """Adds a flag of an integer, or of several integers with commas."""
  parser = _Numbers(lower_bound)
  flags.DEFINE(parser, name, default, text, serializer=_WithCommas())


class _Integers(flags.MultiFlag):
  """A flag of a list, given as `--x=8,16`, as `--x=8 --x=16`, or as both."""

  def _parse(self, arguments: Any) -> list[int]:
    if isinstance(arguments, str):
      arguments = arguments.split(",")
    return super()._parse(arguments)


def define_integers(
  name: str, default: list[int], text: str, *, lower_bound: int
) -> None:
  """Adds a flag of a list of integers, with commas or repeated."""
  parser = flags.IntegerParser(lower_bound=lower_bound)
  text += " Several with commas."
  flags.DEFINE_flag(
    _Integers(parser, flags.ArgumentSerializer(), name, default, text)
  )


def refuse_extremes(known: Iterable[flags.Flag]) -> None:
  """Makes flags refuse nan, the infinities, and integers beyond 32 bits.

  The bounds of absl let nan pass. Counts and sizes are int32 on the device.
  """
  for flag in known:
    if isinstance(flag.parser, flags.FloatParser):
      flags.register_validator(
        flag.name,
        lambda value: value is None or math.isfinite(value),
        "must be a finite number",
      )
    elif isinstance(flag.parser, flags.IntegerParser):
      flags.register_validator(
        flag.name, _is_int32, f"must be at most {MAX_INTEGER}"
      )


def _is_int32(value: int | list[int] | None) -> bool:
  values = value if isinstance(value, list) else [value or 0]
  return max(values, default=0) <= MAX_INTEGER


def flag_values(*names: str) -> dict[str, Any]:
  """Returns the values of flags by name, for `results.json`."""
  return {name: FLAGS[name].value for name in names}


def refuse(*names: str, given: str = "here") -> None:
  """Refuses flags that would have no effect.

  Args:
    *names: the flags.
    given: where they have none, such as "with --data=digits".

  Raises:
    ValueError: if one of the flags is given.
  """
  for name in names:
    if FLAGS[name].present:
      raise ValueError(f"--{name} has no effect {given}: leave it out.")
