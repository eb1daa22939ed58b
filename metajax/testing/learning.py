"""What a meta-learner owes after some training."""

from unittest import SkipTest

import jax
import numpy as np

from metajax.testing.cases import Case, solver_of_many
from metajax.testing.settings import SETTINGS, WAYS, episodes_of
from metajax.types import Episode

EVALUATION_TASKS = 2000


def check_training_improves(case: Case) -> None:
  """200 meta-steps lower the loss after adaptation to new tasks."""
  episodes = episodes_of(case.setting, EVALUATION_TASKS, seed=3)
  losses = jax.vmap(SETTINGS[case.setting].loss_fn)
  before, after = (
    np.asarray(losses(case.solve_all(params, episodes), episodes.query.targets))
    for params in (case.params, case.trained())
  )
  gains = before - after
  # The tasks are the same, so the gains are paired; 4 standard errors.
  assert gains.mean() > 4 * gains.std(ddof=1) / np.sqrt(EVALUATION_TASKS)


def check_accuracy_before_adaptation_is_chance(case: Case) -> None:
  """Without inner steps, labels of the support have no effect.

  Classes are assigned to labels at random. For learners that read the labels by
  inner steps.
  """
  if case.setting != "classification" or case.encoded:
    raise SkipTest("for classes and learners with inner steps")
  solve_all = solver_of_many(case.build(num_eval_steps=0))
  episodes = episodes_of(case.setting, EVALUATION_TASKS, seed=3)
  reversed_labels = _with_support_labels(
    episodes, WAYS - 1 - episodes.support.targets
  )
  for params in (case.params, case.trained()):
    predictions = np.asarray(solve_all(params, episodes))
    np.testing.assert_array_equal(
      predictions, solve_all(params, reversed_labels)
    )
    _assert_chance(_accuracies(predictions, episodes.query.targets))


def check_random_labels_give_chance(case: Case) -> None:
  """Nothing but the support's labels tells a task's labels."""
  if case.setting != "classification":
    raise SkipTest("for classes")
  episodes = episodes_of(case.setting, EVALUATION_TASKS, seed=3)
  targets = episodes.query.targets
  informed = np.asarray(case.solve_all(case.trained(), episodes))
  assert _accuracies(informed, targets).mean() > 1 / WAYS + 0.15
  draw = np.random.default_rng(0)
  labels = draw.permuted(
    np.tile(np.arange(WAYS), (EVALUATION_TASKS, 1)), axis=1
  )
  labels = np.take_along_axis(labels, episodes.support.targets, axis=1)
  misled = case.solve_all(
    case.trained(), _with_support_labels(episodes, labels)
  )
  _assert_chance(_accuracies(np.asarray(misled), targets))


def _accuracies(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """[tasks, n, ways], [tasks, n] -> [tasks]."""
  return np.mean(np.argmax(predictions, axis=-1) == targets, axis=-1)


def _assert_chance(accuracies: np.ndarray) -> None:
  """Values in [0, 1] of mean p have variance p (1 - p) at most: binomial."""
  p = 1 / WAYS
  bound = 4 * np.sqrt(p * (1 - p) / accuracies.size)
  assert abs(accuracies.mean() - p) < bound


def _with_support_labels(episodes: Episode, labels: np.ndarray) -> Episode:
  labels = labels.astype(episodes.support.targets.dtype)
  return episodes._replace(support=episodes.support._replace(targets=labels))
