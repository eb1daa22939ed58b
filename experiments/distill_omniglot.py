"""Distils classifiers on Omniglot and measures the effect on few-shot learning.

  python -m experiments.distill_omniglot --data_dir=DIR

A wide network learns to classify the training characters. Narrow networks learn
the same alone, from the wide network, from an ensemble of wide networks, from
themselves (born again), or with hints of the teacher's features. The script
reports accuracy on new drawings, agreement with the teacher, size and time. On
new characters it reports the few-shot accuracy of the features with a ridge and
a logistic head (Tian et al. 2020). It trains several seeds at once. Differences
are paired.

The script takes 13 minutes on 2 cores, of which the trainings take 8.5. The
teacher of 64 filters has 65.8%. Students of 32 filters have 54.3% alone, 63.0%
distilled and 65.0% from the ensemble. Their features have 74.9, 80.0 and 81.2%
in 5-way 1-shot tasks.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from experiments.shared import classifiers, student_scores, student_tables
from experiments.shared.classifiers import (
  TRAIN,
  Classifiers,
  hinted_init,
  load,
  size_and_time,
)
from metajax import distillation
from metajax.distillation import side_by_side
from metajax.evaluation import estimate
from metajax.models.normalization import GROUPS
from metajax.runs import report
from metajax.runs.flags import (
  FLAGS,
  define_data_dir,
  define_integers,
  flag_values,
)
from metajax.runs.script import run
from metajax.training import task_mesh
from metajax.types import Model, Params

define_data_dir()
flags.DEFINE_integer(
  "filters", 64, "Number of channels of the teacher.", lower_bound=8
)
define_integers(
  "student_filters", [32, 16], "Number of channels of a student.", lower_bound=8
)
flags.DEFINE_float(
  "temperature",
  4.0,
  "Temperature of distillation: logits are divided by it before the softmax.",
  lower_bound=1e-3,
)
flags.DEFINE_float(
  "alpha",
  0.9,
  "Weight of the teacher in the student's loss, 0 to 1. The labels have the "
  "rest.",
  0.0,
  1.0,
)
for _name in ("filters", "student_filters"):
  flags.register_validator(
    _name,
    lambda number: not any(np.atleast_1d(number) % GROUPS),
    f"must be multiples of {GROUPS}, the groups of the normalisation",
  )
DEFAULTS = {
  "steps": 1000,
  "outer_lr": 3e-3,
  "outer_schedule": "cosine",
  "log_every": 250,
  "eval_every": 500,
  "checkpoint_every": 500,
}

KINDS = ("alone", "distilled", "ensemble", "born_again", "hints")


def main() -> None:
  data = load()
  for ways in FLAGS.ways:
    if ways > len(data.novel):
      raise ValueError(
        f"--ways={ways}: must be at most {len(data.novel)}, the new characters."
      )
  students = Classifiers(data)
  stacks = train_all(students)
  # By "SCORE/NAME": means over seeds, for each test image or few-shot task.
  values = student_scores.of_images(students, stacks, "teacher")
  values |= student_scores.of_tasks(students, stacks)
  metrics = {name: estimate(value) for name, value in values.items()}
  metrics |= student_scores.differences(values, stacks)
  recovered = student_scores.recovered(values, KINDS[1:])
  sizes: dict[int, dict[str, float]] = {}
  for filters, stack in stacks.values():
    if filters not in sizes:
      sizes[filters] = size_and_time(students, filters, stack)
  workdir = students.runs.workdir
  student_tables.draw(workdir / "accuracy.png", KINDS, metrics, sizes)
  student_tables.show(stacks, metrics, recovered, sizes)
  report.finish(
    workdir,
    "distill_omniglot",
    {
      "classes": students.num_classes,
      "train_drawings": TRAIN,
      "normalization": "group",
      "seeds": FLAGS.num_seeds,
      "meta_batch": None,
      "devices": task_mesh(FLAGS.batch_size).size,
      **flag_values("batch_size", "temperature", "alpha"),
      "query_shots": student_scores.QUERIES,
      "sizes": sizes,
      "recovered_gap": recovered,
      "metrics": "means over seeds; intervals over test images, or over tasks",
    },
    metrics,
    students.runs.total(),
  )


def train_all(students: Classifiers) -> dict[str, tuple[int, Params]]:
  """Trains all networks. Returns filters and stack of seeds by name."""
  inputs = students.data.train["inputs"]
  tell = flag_values("temperature", "alpha")

  def alone(model: Model) -> Callable:
    return side_by_side(distillation.alone(model))

  # Each seed has its `own` teacher. The ensemble is the same for all seeds.
  def taught(model: Model, own: Sequence[str] = ("teacher",)) -> Callable:
    return side_by_side(distillation.taught(model, **tell), own=own)

  wide = students.model(FLAGS.filters)
  teacher = students.train("teacher", wide.init, alone(wide))
  answers = classifiers.answers(wide, teacher, inputs)
  again = students.train(
    "teacher_born_again", wide.init, taught(wide), teacher=answers
  )
  stacks = {
    "teacher": (FLAGS.filters, teacher),
    "teacher_born_again": (FLAGS.filters, again),
  }
  together = distillation.predict_all(
    distillation.ensemble(wide, teacher), inputs
  )
  hint = classifiers.answers(students.features(FLAGS.filters), teacher, inputs)
  for filters in FLAGS.student_filters:
    model, features = students.model(filters), students.features(filters)
    train = functools.partial(students.train, init=model.init)
    by_itself = train(f"alone_{filters}", loss=alone(model))
    distilled = train(
      f"distilled_{filters}", loss=taught(model), teacher=answers
    )
    of_all = train(
      f"ensemble_{filters}", loss=taught(model, own=()), teacher=together
    )
    own_answers = classifiers.answers(model, by_itself, inputs)
    born_again = train(
      f"born_again_{filters}", loss=taught(model), teacher=own_answers
    )
    hinted = students.train(
      f"hints_{filters}",
      hinted_init(model, filters, FLAGS.filters),
      side_by_side(
        distillation.hinted(model, features.apply, **tell),
        own=["teacher", "hint"],
      ),
      teacher=answers,
      hint=hint,
    )["student"]
    found = (by_itself, distilled, of_all, born_again, hinted)
    for kind, stack in zip(KINDS, found, strict=True):
      stacks[f"{kind}_{filters}"] = filters, stack
  return stacks


if __name__ == "__main__":
  run(
    main,
    defaults=DEFAULTS,
    unused=("learner", "inner_steps", "inner_lr", "memory", "meta_batch"),
  )
