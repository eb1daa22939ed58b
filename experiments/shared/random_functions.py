"""Families of random functions, and the best that can be said of them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from metajax.predictive import log_likelihood
from metajax.tasks.covariances import matern52, periodic, rbf
from metajax.tasks.gaussian_processes import gaussian_processes
from metajax.tasks.known import (
  KnownTasks,
  exact_learner,
  joint_log_likelihood,
  revealed,
)
from metajax.tasks.linear_regression import linear_regression
from metajax.types import Array, Batch, Episode, LossFn, MetaLearner

# (learner, tasks, scores) -> (parameters -> values of each task by score).
Scorer = Callable[
  [MetaLearner, KnownTasks, Mapping[str, LossFn]],
  Callable[[Any], dict[str, np.ndarray]],
]
BOUNDS = (-2.0, 2.0)
# Points of a task in the protocol of transformer neural processes.
POINTS = {"shots": (3, 46), "query_shots": (3, 46), "max_points": 49}
# Grid points of the exact posterior for each hyper-parameter that differs
# between tasks. With a period among them they would be far too many.
NODES = 24
WITHOUT_EXACT = ("periodic",)
_drawn = functools.partial(
  gaussian_processes, length=(0.1, 0.6), scale=(0.1, 1.0), nodes=NODES
)
FAMILIES: dict[str, Callable[..., KnownTasks]] = {
  "rbf": functools.partial(_drawn, rbf),
  "matern": functools.partial(_drawn, matern52),
  "periodic": functools.partial(_drawn, periodic, period=(0.1, 0.5), nodes=1),
  "fixed_rbf": functools.partial(gaussian_processes, rbf),
  # Bayesian linear regression. Inputs are of N(0, 1).
  "linear": functools.partial(linear_regression, 1, noise=0.1),
}


def best(
  tasks: KnownTasks,
  test: Scorer,
  joint: bool,
  known: str,
  score: LossFn = log_likelihood,
) -> np.ndarray:
  """Scores a learner that cannot be bettered.

  Args:
    tasks: the tasks.
    test: scores a learner on the test tasks.
    joint: whether the score is the joint log density of a task's targets,
      divided by their number, or the mean log-likelihood.
    known: "exact" for the posterior of the tasks, "oracle" for that of a
      learner which is told the hyper-parameters.
    score: another score than the log-likelihood; `joint` must be False.

  Returns:
    The score of each task.
  """
  if known == "oracle":
    tasks = revealed(tasks)
  answer = exact_learner(tasks)
  if joint:
    answer, score = _joint(tasks)
  return test(answer, tasks, {"best": score})(())["best"]


def _joint(tasks: KnownTasks) -> tuple[MetaLearner, LossFn]:
  """Returns a learner that predicts what it is asked, and the score of it."""

  def predict(support: Batch, inputs: Any, mask: Array | None = None) -> Any:
    del mask
    return support, inputs

  def score(asked: Any, targets: Any, mask: Array | None = None) -> Array:
    support, inputs = asked
    episode = Episode(support, Batch(inputs, targets, mask))
    return joint_log_likelihood(tasks.posterior, episode)

  return exact_learner(tasks)._replace(predict=predict), score


def with_supports(
  tasks: Callable[..., KnownTasks], shots: list[int], rng: jax.Array
) -> dict[str, Episode]:
  """Returns one function with supports of several sizes, for a picture."""
  most = max(shots)
  support, query = tasks(shots=most, query_shots=100)(rng)
  return {
    f"{n} support points": Episode(
      jax.tree.map(lambda x, n=n: x[:n], support), query
    )
    for n in shots
  }
