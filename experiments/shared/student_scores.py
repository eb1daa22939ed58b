"""How right taught networks are, on known characters and on new ones."""

import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags

from experiments.shared.classifiers import Classifiers
from metajax.evaluation import Estimate, estimate
from metajax.learners import embedding, logistic, ridge
from metajax.losses import accuracy, cross_entropy
from metajax.runs import scoring
from metajax.runs.flags import FLAGS
from metajax.tasks import few_shot_episodes
from metajax.types import Array, Params

flags.DEFINE_multi_integer(
  "ways", [5, 20], "Classes of the few-shot tasks.", lower_bound=2
)

QUERIES = 2
HEADS = {"ridge": ridge, "logistic": logistic}

# Name -> (filters, `[seeds, ...]` of parameters).
Stacks = Mapping[str, tuple[int, Params]]


def of_images(
  students: Classifiers, stacks: Stacks, teacher: str
) -> dict[str, np.ndarray]:
  """Scores drawings that were not trained on, `[images]`, means over seeds.

  Args:
    students: has the data, and asks the networks.
    stacks: what is scored.
    teacher: the name of the one that "agreement" is with.

  Returns:
    Scores by "accuracy/NAME" and "agreement/NAME".
  """
  test = students.data.test

  def classes(filters: int, stack: Params) -> Array:
    return students.answers(students.model(filters), stack, test).argmax(-1)

  goal, values = classes(*stacks[teacher]), {}
  for name, (filters, stack) in stacks.items():
    found = classes(filters, stack)
    right = found == test["labels"][:, None]
    values[f"accuracy/{name}"] = np.mean(right, axis=1)
    values[f"agreement/{name}"] = np.mean(found == goal, axis=1)
  return values


def of_tasks(students: Classifiers, stacks: Stacks) -> dict[str, np.ndarray]:
  """Scores 1-shot tasks of new characters by the networks' features.

  Returns:
    Accuracies `[tasks]`, means over seeds, by "5w1s_ridge/NAME", say.
  """

  @functools.cache
  def compiled(head: str, ways: int, filters: int):
    tasks = few_shot_episodes(students.data.novel, ways, 1, QUERIES, 1)
    learner = embedding(
      # The episodes have their pixels between 0 and 1 already.
      students.features(filters).model,
      HEADS[head](ways),
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
    f"{task}/{name}": score(head, ways, filters, stack)
    for task, (head, ways) in few_shot_tasks().items()
    for name, (filters, stack) in stacks.items()
  }


def few_shot_tasks() -> dict[str, tuple[str, int]]:
  """The head and the number of classes of each few-shot task, by its name."""
  return {
    f"{ways}w1s_{head}": (head, ways) for ways in FLAGS.ways for head in HEADS
  }


def differences(
  values: Mapping[str, np.ndarray], stacks: Stacks
) -> dict[str, Estimate]:
  """Paired differences to the network of the same size that learned alone."""
  found = {}
  for name, (filters, _) in stacks.items():
    alone = "teacher" if name.startswith("teacher") else f"alone_{filters}"
    for score in ("accuracy", *few_shot_tasks()):
      if name != alone:
        found[f"{score}/{name}_minus_{alone}"] = estimate(
          values[f"{score}/{name}"] - values[f"{score}/{alone}"]
        )
  return found


def recovered(
  values: Mapping[str, np.ndarray], kinds: Sequence[str]
) -> dict[str, float]:
  """Shares of the gap in accuracy from a student alone to the teacher."""

  def gain(name: str, alone: str) -> float:
    return (values[f"accuracy/{name}"] - values[f"accuracy/{alone}"]).mean()

  return {
    f"{kind}_{filters}": float(
      gain(f"{kind}_{filters}", f"alone_{filters}")
      / gain("teacher", f"alone_{filters}")
    )
    for filters in FLAGS.student_filters
    for kind in kinds
  }
