"""Scores on the fixed tasks of a split, by the flags."""

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from metajax.evaluation import Estimate, estimate, evaluator
from metajax.runs.rng_keys import evaluation_key
from metajax.training import task_mesh
from metajax.training.logging import tell, waiting
from metajax.training.mesh import usable_cores
from metajax.types import LossFn, MetaLearner, Params, TaskFamily


def scorer(
  learner: MetaLearner,
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  split: str,
  num_tasks: int,
  **options: Any,
) -> Callable[[Params], dict[str, Estimate]]:
  """Returns `meta_params -> {metric: estimate}` on a split's fixed tasks."""
  score = _values(learner, tasks, metrics, split, num_tasks, **options)
  return lambda params: {k: estimate(v) for k, v in score(params).items()}


def task_scorer(
  learner: MetaLearner,
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  split: str,
  num_tasks: int,
  **options: Any,
) -> Callable[[Params], dict[str, np.ndarray]]:
  """Returns `meta_params -> {metric: values}`, a value for each fixed task."""
  score = _values(learner, tasks, metrics, split, num_tasks, **options)
  return waiting(f"evaluating on {num_tasks} {split} tasks")(score)


def _values(
  learner: MetaLearner,
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  split: str,
  num_tasks: int,
  **options: Any,
) -> Callable[[Params], dict[str, np.ndarray]]:
  rng = evaluation_key(split)
  # What does not divide is padded.
  count = jax.process_count()
  mesh = task_mesh(-(-num_tasks // count) * count)
  return evaluator(
    learner, tasks, metrics, rng, num_tasks=num_tasks, mesh=mesh, **options
  )


def together(calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
  """Makes calls side by side, each of which compiles a program of its own.

  One after the other where there are other processes, which must compute the
  same in the same order.
  """
  if len(calls) == 1:
    with waiting("evaluating on test tasks"):
      return {key: call() for key, call in calls.items()}
  tell(f"{len(calls)} test evaluations")
  alone = jax.process_count() == 1
  at_once = min(len(calls), usable_cores(), 4) if alone else 1
  with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    results = {key: pool.submit(call) for key, call in calls.items()}
    return {key: result.result() for key, result in results.items()}
