"""Knowledge distillation on Omniglot, and what it does to few-shot learning.

  python -m experiments.distill_omniglot --data_dir=DIR

A wide network learns to tell the training characters apart; narrow ones learn
it alone, from the wide one, from an ensemble of wide ones, from themselves
(born again), or with hints of its features. Reported of each: accuracy on
drawings not trained on, agreement with the teacher, size and time; and, on
characters never seen, the few-shot accuracy of its features under a ridge and a
logistic head (Tian et al. 2020). Everything is trained from several seeds at
once, and differences are paired.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from absl import flags

from experiments.shared.classifiers import (
  TRAIN,
  Classifiers,
  load,
  size_and_time,
)
from metajax import distillation
from metajax.evaluation import Estimate, estimate
from metajax.learners import embedding, logistic, ridge
from metajax.losses import accuracy, cross_entropy
from metajax.runs import plots, report, scoring
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.runs.script import run
from metajax.tasks import few_shot_episodes
from metajax.types import Array, Model, Params

define_data_dir()
flags.DEFINE_integer(
  "classes",
  200,
  "Training characters to tell apart, of 1100. With all of them the smallest "
  "students cannot even fit the training images within the default --steps.",
  lower_bound=2,
  upper_bound=1100,
)
flags.DEFINE_integer("filters", 64, "Channels of the teacher.", lower_bound=8)
flags.DEFINE_multi_integer(
  "student_filters", [32, 16], "Channels of the students.", lower_bound=8
)
flags.DEFINE_integer("num_seeds", 3, "Seeds, trained at once.", lower_bound=2)
flags.DEFINE_integer(
  "batch_size", 128, "Images of a training step.", lower_bound=1
)
flags.DEFINE_float(
  "temperature", 4.0, "By which logits are divided.", lower_bound=1e-3
)
flags.DEFINE_float(
  "alpha", 0.9, "How much the teacher counts, 0 to 1.", 0.0, 1.0
)
flags.DEFINE_multi_integer(
  "ways", [5, 20], "Classes of the few-shot tasks.", lower_bound=2
)
DEFAULTS = {
  "steps": 1000,
  "outer_lr": 3e-3,
  "outer_schedule": "cosine",
  "log_every": 250,
  "eval_every": 500,
  "checkpoint_every": 500,
}

QUERIES = 2


def main() -> None:
  data = load()
  students = Classifiers(data)
  # Name -> (filters, stack).
  stacks = train_all(students)
  teacher = students.model(FLAGS.filters)
  goal = students.answers(teacher, stacks["teacher"][1], data.test).argmax(-1)

  metrics: dict[str, Estimate] = {}
  right: dict[str, np.ndarray] = {}
  sizes: dict[int, dict[str, float]] = {}
  few_shot = scorers(students)
  for name, (filters, stack) in stacks.items():
    model = students.model(filters)
    found = students.answers(model, stack, data.test).argmax(-1)
    # A value for each image (below, for each task): the mean over the seeds.
    right[name] = np.mean(found == data.test["labels"][:, None], axis=1)
    metrics[f"accuracy/{name}"] = estimate(right[name])
    metrics[f"agreement/{name}"] = estimate(np.mean(found == goal, axis=1))
    if filters not in sizes:
      sizes[filters] = size_and_time(model, students.features(filters), stack)
  values = {
    f"{task}/{name}": score(filters, stack)
    for task, score in few_shot.items()
    for name, (filters, stack) in stacks.items()
  }
  metrics |= {name: estimate(value) for name, value in values.items()}
  tasks = list(few_shot)
  for name in stacks:
    alone = "teacher" if name.startswith("teacher") else f"alone{_width(name)}"
    if name == alone:
      continue
    metrics[f"accuracy/{name}_minus_{alone}"] = estimate(
      right[name] - right[alone]
    )
    for task in tasks:
      metrics[f"{task}/{name}_minus_{alone}"] = estimate(
        values[f"{task}/{name}"] - values[f"{task}/{alone}"]
      )
  recovered = {
    f"{kind}_{filters}": float(
      (right[f"{kind}_{filters}"] - right[f"alone_{filters}"]).mean()
      / (right["teacher"] - right[f"alone_{filters}"]).mean()
    )
    for filters in FLAGS.student_filters
    for kind in ("distilled", "ensemble", "born_again", "hints")
  }
  draw(students, metrics, sizes)
  print_rows(stacks, metrics, sizes, recovered, tasks)
  report.finish(
    students.runs.workdir,
    "distill_omniglot",
    {
      "classes": students.num_classes,
      "train_drawings": TRAIN,
      "normalization": "group",
      "seeds": FLAGS.num_seeds,
      "meta_batch": None,
      "batch_size": FLAGS.batch_size,
      "temperature": FLAGS.temperature,
      "alpha": FLAGS.alpha,
      "query_shots": QUERIES,
      "sizes": sizes,
      "recovered_gap": recovered,
      "metrics": "means over seeds; intervals over test images, or over tasks",
    },
    metrics,
    students.runs.total(),
  )


def _width(name: str) -> str:
  return name[name.rindex("_") :]


def train_all(students: Classifiers) -> dict[str, tuple[int, Params]]:
  """Trains the teacher and every student."""
  data = students.data.train
  tell = {"temperature": FLAGS.temperature, "alpha": FLAGS.alpha}
  wide = students.model(FLAGS.filters)

  def alone(model: Model) -> Callable:
    return distillation.side_by_side(distillation.alone(model))

  def taught(model: Model) -> Callable:
    loss = distillation.taught(model, **tell)
    return distillation.side_by_side(loss, own=["teacher"])

  stacks = {}
  teacher = students.train("teacher", wide.init, alone(wide))
  stacks["teacher"] = FLAGS.filters, teacher
  logits = students.answers(wide, teacher, data)
  stacks["teacher_born_again"] = (
    FLAGS.filters,
    students.train(
      "teacher_born_again", wide.init, taught(wide), teacher=logits
    ),
  )
  together = distillation.predict_all(
    distillation.ensemble(wide, teacher), data["inputs"]
  )
  seen = students.answers(students.features(FLAGS.filters), teacher, data)
  for filters in FLAGS.student_filters:
    model = students.model(filters)
    features = students.features(filters)

    def init_hinted(rng: Array, image: Array, model=model, filters=filters):
      keys = jax.random.split(rng)
      glorot = nn.initializers.glorot_uniform()
      return {
        "student": model.init(keys[0], image),
        "regressor": glorot(keys[1], (filters, FLAGS.filters)),
      }

    train = functools.partial(students.train, init=model.init)
    by_itself = train(f"alone_{filters}", loss=alone(model))
    found = {
      "alone": by_itself,
      "distilled": train(
        f"distilled_{filters}", loss=taught(model), teacher=logits
      ),
      "ensemble": train(
        f"ensemble_{filters}",
        loss=distillation.side_by_side(distillation.taught(model, **tell)),
        teacher=together,
      ),
      "born_again": train(
        f"born_again_{filters}",
        loss=taught(model),
        teacher=students.answers(model, by_itself, data),
      ),
      "hints": students.train(
        f"hints_{filters}",
        init_hinted,
        distillation.side_by_side(
          distillation.hinted(model, features.apply, **tell),
          own=["teacher", "hint"],
        ),
        teacher=logits,
        hint=seen,
      )["student"],
    }
    stacks |= {f"{k}_{filters}": (filters, v) for k, v in found.items()}
  return stacks


def scorers(students: Classifiers) -> dict[str, Callable[..., np.ndarray]]:
  """Few-shot task -> `(filters, stack) -> accuracies`, a mean over seeds."""

  @functools.cache
  def compiled(head: str, ways: int, filters: int):
    tasks = few_shot_episodes(students.data.novel, ways, 1, QUERIES, 1)
    heads = {"ridge": ridge, "logistic": logistic}
    learner = embedding(
      # The episodes have their pixels between 0 and 1 already.
      students.features(filters).model,
      heads[head](ways),
      cross_entropy,
      normalize=True,
    )
    return scoring.task_scorer(
      learner, tasks, {"accuracy": accuracy}, "test", FLAGS.eval_tasks
    )

  def score(head: str, ways: int, filters: int, stack: Params) -> np.ndarray:
    run = compiled(head, ways, filters)
    members = [
      jax.tree.map(lambda x, i=i: x[i], stack) for i in range(FLAGS.num_seeds)
    ]
    return np.mean([run(params)["accuracy"] for params in members], axis=0)

  return {
    f"{ways}w1s_{head}": functools.partial(score, head, ways)
    for ways in FLAGS.ways
    for head in ("ridge", "logistic")
  }


def draw(students: Classifiers, metrics, sizes) -> None:
  """Accuracy against the number of parameters, by kind of student."""
  lines = {
    kind: {
      sizes[filters]["parameters"]: metrics[f"accuracy/{kind}_{filters}"]
      for filters in FLAGS.student_filters
    }
    for kind in ("alone", "distilled", "ensemble", "born_again", "hints")
  }
  lines["teacher"] = {
    sizes[FLAGS.filters]["parameters"]: metrics["accuracy/teacher"]
  }
  plots.curves(
    students.runs.workdir / "accuracy.png",
    lines,
    "parameters, head included",
    "test accuracy",
    log="x",
  )


def print_rows(stacks, metrics, sizes, recovered, tasks) -> None:
  """Prints a line for each network."""
  print(f"\n{'':20} accuracy  agreement  " + "  ".join(tasks))
  for name in stacks:
    few = [f"{metrics[f'{task}/{name}'].mean:{len(task)}.4f}" for task in tasks]
    print(
      f"{name:20} {metrics[f'accuracy/{name}'].mean:8.4f}  "
      f"{metrics[f'agreement/{name}'].mean:9.4f}  " + "  ".join(few)
    )
  print("\nrecovered of the gap between student alone and teacher:")
  for name, share in recovered.items():
    print(f"  {name:16} {share:.2f}")
  for filters, size in sizes.items():
    print(
      f"  {filters} filters: {size['parameters']} parameters "
      f"({size['parameters_without_head']} without the head), "
      f"{size['milliseconds_of_256']:.1f} ms for 256 images"
    )


if __name__ == "__main__":
  run(
    main,
    defaults=DEFAULTS,
    unused=("learner", "inner_steps", "inner_lr", "memory", "meta_batch"),
  )
