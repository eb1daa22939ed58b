"""The meta-learner that the flags describe, and the options of each learner."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from absl import flags

from metajax.learners import registry
from metajax.learners.options import Option, Setting, values
from metajax.learners.registry import ENCODED
from metajax.recipes import Recipe
from metajax.runs.flags import FLAGS, refuse

flags.DEFINE_enum(
  "inner_optimizer",
  "sgd",
  ["sgd", "adam"],
  "Optimizer of the inner loop. adam: Adam with b1=0, as in the code of "
  "Reptile's authors.",
)
flags.DEFINE_enum(
  "outer_optimizer",
  "adam",
  ["adam", "sgd", "momentum"],
  "Optimizer of the meta-parameters. Reptile uses sgd with --outer_lr=1. "
  "momentum: SGD with Nesterov's momentum 0.9 and weight decay 5e-4.",
)
flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16"],
  "Precision of the network's computation. Parameters, losses and optimizers "
  "are in float32.",
)


def define_option(learner: str, option: Option) -> None:
  """Adds the flag of a learner's own option.

  Raises:
    ValueError: if a flag of that name exists already.
  """
  if option.name in FLAGS:
    raise ValueError(
      f"learner {learner!r}: option {option.name!r} is a flag of every script; "
      "rename it."
    )
  text = f"{learner}: {option.help}"
  bounds: dict[str, Any] = {
    "lower_bound": option.low,
    "upper_bound": option.high,
  }
  match option.default:
    case bool(default):
      flags.DEFINE_bool(option.name, default, text)
    case int(default):
      flags.DEFINE_integer(option.name, default, text, **bounds)
    case float(default):
      flags.DEFINE_float(option.name, default, text, **bounds)


try:
  for _learner, _options in registry.OPTIONS.items():
    for _option in _options:
      define_option(_learner, _option)
except ValueError as error:
  sys.exit(f"error: {error}")
# The flags of the inner loop. Learners without an inner loop refuse them.
INNER = ("inner_optimizer", "inner_steps", "inner_lr", "memory")


def recipe(
  name: str,
  network: Mapping[str, Any] | None,
  loss: str,
  num_outputs: int,
  eval_steps: int,
) -> Recipe:
  """Describes a learner by the flags, for `metajax.recipes.build`.

  Args:
    name: the name of the learner.
    network: the model, see `Recipe.model`; None for a model that metajax does
      not know.
    loss: the name of a function of `metajax.losses`.
    num_outputs: the number of classes, or of numbers to predict.
    eval_steps: inner steps at test. A traced number is not checked.

  Raises:
    ValueError: if a flag does not fit the learner.
  """
  traced = isinstance(eval_steps, jax.core.Tracer)
  if not traced and not _has_step(name, eval_steps):
    raise ValueError(
      f"--eval_inner_steps={eval_steps}: must be at most --inner_steps="
      f"{FLAGS.inner_steps}, since each step of {name} has parameters of its "
      "own."
    )
  options = own(name)
  if name in ENCODED:
    refuse(*INNER)
  return Recipe(
    name,
    None if network is None else dict(network),
    num_outputs,
    loss,
    {"name": FLAGS.inner_optimizer, "learning_rate": FLAGS.inner_lr},
    FLAGS.inner_steps,
    eval_steps,
    FLAGS.memory,
    FLAGS.dtype,
    options,
  )


def own(name: str, steps: int | None = None) -> dict[str, Any]:
  """Returns a learner's own options.

  Args:
    name: the name of the learner.
    steps: the number of meta-steps of the training; None: --steps.

  Raises:
    ValueError: if a flag of another learner is given.
  """
  for other, options in registry.OPTIONS.items():
    for option in options:
      if other != name and FLAGS[option.name].present:
        raise ValueError(
          f"--{option.name} is for --learner={other}, not {name}: leave it out."
        )
  options = registry.OPTIONS[name]
  given = {option.name: FLAGS[option.name].value for option in options}
  setting = Setting(
    steps=FLAGS.steps if steps is None else steps,
    normalizes="normalization" in FLAGS and FLAGS.normalization != "none",
    inner_lr=FLAGS.inner_lr,
    inner_optimizer=FLAGS.inner_optimizer,
    said=frozenset(o.name for o in options if FLAGS[o.name].present),
  )
  return values(options, given, setting)


def num_context(name: str) -> int:
  """Returns the size of the context, which a network takes beside its inputs.

  It is 0 for all learners but CAVIA.
  """
  return FLAGS.num_context if name == "cavia" else 0


def possible_steps(name: str, wanted: Iterable[int]) -> list[int]:
  """Sorts numbers of inner steps, without the numbers a learner cannot take.

  With learned rates or step normalisation, MAML++ has parameters for each inner
  step of its training, and cannot take more steps. For a learner without an
  inner loop, the list is empty.
  """
  if name in ENCODED:
    return []
  return sorted(k for k in set(wanted) if _has_step(name, k))


def eval_steps(name: str) -> int:
  """Returns --eval_inner_steps.

  If the flag is not given and the learner cannot take so many steps, the flag
  becomes --inner_steps, the most that it can take.
  """
  given = FLAGS["eval_inner_steps"].present
  if not given and not _has_step(name, FLAGS.eval_inner_steps):
    FLAGS.eval_inner_steps = FLAGS.inner_steps
  return FLAGS.eval_inner_steps


def _has_step(name: str, steps: int) -> bool:
  if name != "maml_plus_plus" or steps <= FLAGS.inner_steps:
    return True
  mine = own(name)
  return not (mine["learned_rates"] or mine["step_normalization"])


def protocol(name: str) -> dict[str, Any]:
  """Returns the entries of the learner in `results.json`."""
  inner = () if name in ENCODED else INNER
  return {
    "learner": name,
    "dtype": FLAGS.dtype,
    **{flag: FLAGS[flag].value for flag in inner},
    "outer_optimizer": FLAGS.outer_optimizer,
    **own(name),
  }
