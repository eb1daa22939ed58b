"""Accuracy at the first, second, ... presentation of a class in a sequence."""

from collections.abc import Callable

import jax

from metajax.learners import SequenceLearner
from metajax.losses import accuracy_by_presentation
from metajax.runs import rng_keys
from metajax.types import Array, Params, PRNGKey, TaskFamily


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
