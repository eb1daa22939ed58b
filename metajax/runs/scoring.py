"""Scores on the fixed tasks of a split, which --eval_seed defines."""

import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from metajax.evaluation import Estimate, estimate, evaluator
from metajax.learners import TRACED_STEPS
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


def stepwise_scorer(
  name: str,
  build: Callable[[Any], MetaLearner],
  *arguments: Any,
  **options: Any,
) -> Callable[[Params, int], dict[str, Estimate]]:
  """Returns `(meta_params, inner steps) -> {metric: estimate}`.

  One program serves all numbers of steps, if the learner can be built with a
  traced number (`learners.TRACED_STEPS`).

  Args:
    name: the name of the learner.
    build: builds the learner that takes so many inner steps.
    *arguments: those of `scorer` after the learner.
    **options: those of `scorer`.
  """
  if name not in TRACED_STEPS:
    fixed = functools.cache(lambda k: scorer(build(k), *arguments, **options))
    return lambda params, steps: fixed(steps)(params)
  score = _values(build, *arguments, **options)

  def estimates(params: Params, steps: int) -> dict[str, Estimate]:
    return {k: estimate(v) for k, v in score(params, steps).items()}

  return estimates


def task_scorer(
  learner: MetaLearner,
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  split: str,
  num_tasks: int,
  **options: Any,
) -> Callable[[Params], dict[str, np.ndarray]]:
  """Returns `meta_params -> {metric: values}`, with a value for each task."""
  score = _values(learner, tasks, metrics, split, num_tasks, **options)
  return waiting(f"evaluating on {num_tasks} {split} tasks")(score)


def _values(
  learner: MetaLearner | Callable[[Any], MetaLearner],
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  split: str,
  num_tasks: int,
  **options: Any,
) -> Callable[..., dict[str, np.ndarray]]:
  rng = evaluation_key(split)
  # The evaluator pads the tasks to a multiple of the number of processes.
  count = jax.process_count()
  mesh = task_mesh(-(-num_tasks // count) * count)
  return evaluator(
    learner, tasks, metrics, rng, num_tasks=num_tasks, mesh=mesh, **options
  )


def differences(
  values: Mapping[str, np.ndarray], pairs: Iterable[tuple[str, str]]
) -> dict[str, Estimate]:
  """Estimates paired differences of scores on the same tasks.

  Args:
    values: scores `[num_tasks]` by name.
    pairs: pairs of names. The second score is subtracted from the first.

  Returns:
    The estimates by name; the name for the pair (a, b) is `a_minus_b`.
  """
  return {
    f"{one}_minus_{other}": estimate(values[one] - values[other])
    for one, other in pairs
  }


def together(calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
  """Makes calls in parallel, because each one compiles its own program.

  In a run of several processes the calls come one after the other. All
  processes must compute the same programs in the same order.
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
