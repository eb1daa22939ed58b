"""Accuracy at the first, second, ... presentation of a class in a sequence."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax.evaluation import Estimate
from metajax.learners import SequenceLearner
from metajax.losses import accuracy_by_presentation
from metajax.runs import plots, rng_keys
from metajax.types import Array, Params, PRNGKey, TaskFamily

SHOWN = (1, 2, 3, 5, 10)
# Percent in table 1 of Santoro et al. (2016) and of Mishra et al. (2018), by
# protocol, ways and shots: of each presentation, or of the queries.
PUBLISHED: dict[tuple[str, int, int], dict[str, Any]] = {
  ("presentations", 5, 10): {
    "mann": {1: 36.4, 2: 82.8, 3: 91.0, 4: 92.6, 5: 94.9, 10: 98.1},
    "lstm": {1: 24.4, 2: 49.5, 3: 55.3, 4: 61.0, 5: 63.6, 10: 62.5},
  },
  ("few_shot", 5, 1): {"snail": 99.07},
  ("few_shot", 20, 1): {"snail": 97.64},
}


def scorer(
  reader: SequenceLearner,
  family: TaskFamily,
  split: str,
  num_tasks: int,
  presentations: int,
) -> Callable[[Params], Array]:
  """Returns `params -> accuracies [tasks, presentations]` on fixed tasks.

  The sequence of a task is its support.
  """
  keys = jax.random.split(rng_keys.evaluation_key(split), num_tasks)

  def one(params: Params, family: TaskFamily, key: PRNGKey) -> Array:
    sequence = family(key).support
    nothing = reader.start(params, sequence.inputs)
    logits, _ = reader.read(params, nothing, sequence)
    accuracies = accuracy_by_presentation(logits, sequence.targets)
    return accuracies[:presentations]

  @jax.jit
  def score(params: Params, family: TaskFamily) -> Array:
    return jax.lax.map(lambda k: one(params, family, k), keys, batch_size=20)

  return lambda params: score(params, family)


def draw(
  workdir: Path,
  learner: str,
  accuracies: np.ndarray,
  published: Mapping[str, Mapping[int, float]],
) -> None:
  """Draws accuracies `[tasks, presentations]` beside published percents."""
  places = range(1, accuracies.shape[1] + 1)
  lines = {learner: plots.line(places, 100 * accuracies)} | {
    f"{name}, published": {k: Estimate(v, 0.0, 1) for k, v in of.items()}
    for name, of in published.items()
  }
  plots.curves(
    workdir / "presentations.png",
    lines,
    "presentation of a character",
    "accuracy in percent",
  )
