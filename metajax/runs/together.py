"""Trains points of a sweep that differ only in numbers, in one program.

First the script's main function runs once for each point, up to its training.
It checks the flags and makes the folder of the point. Then one program trains
all points and writes their checkpoints. Later each point's own process starts
from its last checkpoint. It has nothing left to train and goes on to the
evaluation and the pictures.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from metajax import recipes
from metajax.learners import OPTIONS
from metajax.runs.flags import FLAGS
from metajax.training import evaluation_params, meta_trainer
from metajax.training.loop import Schedule
from metajax.training.seeds import Points
from metajax.training.state import Trainer, TrainState
from metajax.training.together import Member, fit_together
from metajax.types import (
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
  TaskFamily,
  as_partial,
)

flags.DEFINE_string(
  "together",
  None,
  "Used by --sweep: the runs that this process trains in one program, as JSON.",
)


class Planned(NamedTuple):
  """The arguments of `training.trainer`, for a trainer that is built later."""

  learner: MetaLearner
  tasks: TaskFamily
  rng: PRNGKey
  optimizer: Callable[[Any], optax.GradientTransformation]
  outer_lr: float
  schedule: Schedule
  recipe: recipes.Recipe | None
  metrics: Mapping[str, LossFn] | None
  rates: Callable[[TrainState], Mapping[str, float]]


class Ready(Exception):
  """Ends a script's main function at the place where its training begins."""

  def __init__(
    self,
    planned: Planned,
    workdir: Path,
    validate: Callable[[Params], dict[str, float]],
    rng: PRNGKey,
  ):
    super().__init__()
    self.planned = planned
    self.workdir = workdir
    self.validate = validate
    self.rng = rng


def numbers() -> set[str]:
  """Returns the flags that may differ between the runs of one program."""
  return {"seed", "inner_lr", "outer_lr"} | {
    option.name
    for options in OPTIONS.values()
    for option in options
    if isinstance(option.default, float)
  }


def run(main: Callable[[], None]) -> None:
  """Trains the points of --together.

  A point with an error is left out. Its own process reports the error later.

  Raises:
    ValueError: if one program cannot train the points.
  """
  ready: list[Ready] = []
  for point in json.loads(FLAGS.together):
    for name, word in point.items():
      FLAGS[name].parse(word)
      FLAGS[name].using_default_value = False
    try:
      main()
    except Ready as one:
      ready.append(one)
    except ValueError:
      continue
  # Only points at the same step can be trained together.
  groups: dict[int, list[Ready]] = {}
  for found in ready:
    steps = (found.workdir / "checkpoints").glob("[0-9]*")
    newest = max((int(p.name) for p in steps if p.name.isdecimal()), default=0)
    groups.setdefault(newest, []).append(found)
  for step in sorted(groups):
    if len(groups[step]) > 1:
      _train(groups[step])


def _train(ready: Sequence[Ready]) -> None:
  first = ready[0].planned
  planned = [found.planned for found in ready]
  if any(_traced(p.tasks) != _traced(first.tasks) for p in planned):
    raise ValueError("the points have other tasks.")
  stacked, build = _built([p.recipe for p in planned], first.metrics)
  rates = jnp.array([p.outer_lr for p in planned])

  def make(point: Any) -> tuple[MetaLearner, optax.GradientTransformation]:
    varied, rate = point
    return build(varied), first.optimizer(rate)

  def trainer_of(left: Sequence[int]) -> Trainer:
    at = np.array(left)
    return meta_trainer(
      first.learner,
      first.optimizer(first.outer_lr),
      first.tasks,
      meta_batch=FLAGS.meta_batch,
      rng=jnp.stack([planned[i].rng for i in left]),
      task_chunk=FLAGS.task_chunk or None,
      skip_non_finite=True,
      points=Points(([x[at] for x in stacked], rates[at]), make),
    )

  def member(found: Ready) -> Member:
    def validate(state):
      return found.validate(evaluation_params(state))

    return Member(found.rng, found.workdir, validate, found.planned.rates)

  fit_together(
    trainer_of,
    [member(found) for found in ready],
    first.schedule,
    tasks_per_step=FLAGS.meta_batch,
    stall_seconds=FLAGS.stall_seconds,
  )


def _built(
  described: Sequence[recipes.Recipe | None],
  metrics: Mapping[str, LossFn] | None,
) -> tuple[list[jax.Array], Callable[[Any], MetaLearner]]:
  """Returns the numbers in which recipes differ, and a function of them.

  The function builds the learner of one point from its numbers.

  Raises:
    ValueError: if a recipe is missing, or if recipes differ in more than
      numbers.
  """
  if any(recipe is None for recipe in described):
    raise ValueError("the script gives its trainer no recipe.")
  leaves, trees = zip(*map(jax.tree.flatten, described), strict=True)
  if any(tree != trees[0] for tree in trees):
    raise ValueError("the points have other learners.")
  columns = list(zip(*leaves, strict=True))
  varied = [i for i, column in enumerate(columns) if len({*column}) > 1]
  if not all(isinstance(x, float) for i in varied for x in columns[i]):
    raise ValueError("the points differ in more than numbers.")

  def build(values: Sequence[Any]) -> MetaLearner:
    own = list(leaves[0])
    for i, value in zip(varied, values, strict=True):
      own[i] = value
    return recipes.build(jax.tree.unflatten(trees[0], own), metrics)

  return [jnp.array(columns[i]) for i in varied], build


def _traced(tasks: TaskFamily) -> tuple[str, list[bytes]]:
  """Returns the program of a task family and its data, for comparison."""
  partial = as_partial(tasks)
  program = jax.make_jaxpr(partial)(jax.random.key(0))
  arrays = [*program.consts, *jax.tree.leaves(partial)]
  text = re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr))
  return text, [_bytes(x) for x in arrays]


def _bytes(x: Any) -> bytes:
  keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(x) if keys else x).tobytes()
