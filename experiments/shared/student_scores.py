"""Scores of distilled networks on known characters and on new characters."""

import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from experiments.shared.classifiers import Classifiers, answers
from metajax.evaluation import Estimate, estimate
from metajax.learners import embedding, logistic, ridge
from metajax.losses import accuracy, cross_entropy
from metajax.runs import scoring
from metajax.runs.flags import FLAGS, define_integers
from metajax.tasks import few_shot_episodes
from metajax.types import Array, Params

define_integers(
  "ways", [5, 20], "Number of classes of the few-shot tasks.", lower_bound=2
)

QUERIES = 2
HEADS = {"ridge": ridge, "logistic": logistic}

# Name -> (filters, `[seeds, ...]` of parameters).
Stacks = Mapping[str, tuple[int, Params]]


def of_images(
  students: Classifiers, stacks: Stacks, teacher: str
) -> dict[str, np.ndarray]:
  """Scores networks on test drawings of known characters.

  Args:
    students: has the data and the networks.
    stacks: the networks.
    teacher: the name of the network that "agreement" compares with.

  Returns:
    Scores `[images]`, means over seeds, by "accuracy/NAME" and
    "agreement/NAME".
  """
  test = students.data.test

  def classes(filters: int, stack: Params) -> Array:
    model = students.model(filters)
    return answers(model, stack, test["inputs"]).argmax(-1)

  values = {}
  found = {name: classes(*pair) for name, pair in stacks.items()}
  for name, chosen in found.items():
    right = chosen == test["labels"][:, None]
    values[f"accuracy/{name}"] = np.mean(right, axis=1)
    values[f"agreement/{name}"] = np.mean(chosen == found[teacher], axis=1)
  return values


def of_tasks(students: Classifiers, stacks: Stacks) -> dict[str, np.ndarray]:
  """Scores the networks' features on 1-shot tasks of new characters.

  Returns:
    Accuracies `[tasks]`, means over seeds, by names such as "5w1s_ridge/NAME".
  """

  @functools.cache
  def compiled(head: str, ways: int, filters: int):
    tasks = few_shot_episodes(students.data.novel, ways, 1, QUERIES, 1)
    learner = embedding(
      # Pixels of episodes are in [0, 1], so `Pixels` must not scale them.
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
  """Returns the head and the number of classes of each few-shot task."""
  return {
    f"{ways}w1s_{head}": (head, ways) for ways in FLAGS.ways for head in HEADS
  }


def differences(
  values: Mapping[str, np.ndarray], stacks: Stacks
) -> dict[str, Estimate]:
  """Returns paired differences to networks of the same size trained alone."""
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
  """Returns the share of the accuracy gap to the teacher that students close.

  The gap is that between the student trained alone and the teacher.
  """

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
