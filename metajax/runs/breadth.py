"""Tests of a few-shot learner by shots and by ways, and its confusions."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from metajax.evaluation import Estimate
from metajax.runs import confusion, plots, scoring
from metajax.runs.flags import FLAGS
from metajax.tasks.image_files import Images
from metajax.types import MetaLearner, Params, TaskFamily

flags.DEFINE_enum(
  "pictures",
  "few",
  ["few", "all"],
  "all: also test with other numbers of shots, and of ways where the learner "
  "takes any, and draw the classes that are confused most. That takes as long "
  "as about ten tests.",
)
SHOTS = (1, 2, 5, 10, 20)
WAYS = (2, 5, 10, 20)
ACCURACY = "test accuracy"


class TaskMaker(NamedTuple):
  """Makes test tasks of any size.

  Attributes:
    tasks: `(ways, shots) -> tasks`. It raises a `ValueError` if the images do
      not suffice.
    images: returns the images as uint8, with the names of their classes.
    num_rotations: the number of quarter turns that make classes of their own.
  """

  tasks: Callable[[int, int], TaskFamily]
  images: Callable[[], Images]
  num_rotations: int = 1


def test(
  workdir: Path,
  data: TaskMaker,
  score: Callable[[int, TaskFamily], Estimate],
  learner: MetaLearner,
  params: Params,
  *,
  ways: int,
  shots: int,
  any_ways: bool,
) -> dict[str, Estimate]:
  """Tests with other numbers of shots and ways, and draws the results.

  It draws `accuracy_by_shots.png`, `confusion.png` and, for learners of any
  number of classes, `accuracy_by_ways.png`. Numbers for which there are too few
  images or classes are left out.

  Args:
    workdir: the folder of the run.
    data: the test images.
    score: `(ways, tasks) -> accuracy` of the trained learner.
    learner: the learner of `ways` classes.
    params: the meta-parameters for the picture of confusions.
    ways: the classes of the run's test tasks.
    shots: the shots of the run's test tasks.
    any_ways: whether the learner takes any number of classes.

  Returns:
    The accuracies by name, such as "accuracy_5w20s" of 5-way 20-shot tasks.
  """

  def scored(n: int, k: int) -> Estimate | None:
    try:
      tasks = data.tasks(n, k)
    except ValueError:  # There are too few images or classes.
      return None
    return score(n, tasks)

  numbers = {(ways, k) for k in (*SHOTS, shots)}
  if any_ways:
    numbers |= {(n, shots) for n in (*WAYS, ways)}
  calls = {pair: functools.partial(scored, *pair) for pair in sorted(numbers)}
  found = {pair: e for pair, e in scoring.together(calls).items() if e}
  by_shots = {k: e for (n, k), e in found.items() if n == ways}
  lines = {"test": by_shots}
  plots.curves(workdir / "accuracy_by_shots.png", lines, "shots", ACCURACY)
  if any_ways:
    by_ways = {n: e for (n, k), e in found.items() if k == shots}
    chance = {n: Estimate(1 / n, 0.0, 0) for n in by_ways}
    lines = {"test": by_ways, "chance": chance}
    plots.curves(workdir / "accuracy_by_ways.png", lines, "ways", ACCURACY)
  confusion.draw(
    workdir / "confusion.png",
    learner,
    params,
    data.tasks(ways, shots),
    data.images(),
    ways=ways,
    num_tasks=FLAGS.eval_tasks,
    num_rotations=data.num_rotations,
  )
  return {f"accuracy_{n}w{k}s": e for (n, k), e in found.items()}
