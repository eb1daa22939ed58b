"""Checks of a learner and a task family, before anything is compiled."""

import warnings
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from metajax.types import (
  Batch,
  Episode,
  MetaLearner,
  Stream,
  TaskFamily,
  as_partial,
)


def check_learner(learner: MetaLearner) -> None:
  """Raises a `ValueError` if the argument is no `MetaLearner`."""
  if not isinstance(learner, MetaLearner):
    raise ValueError(
      f"learner: a {type(learner).__name__} given, must be a MetaLearner, such "
      "as metajax.learners.maml(...)."
    )


def check_tasks(tasks: TaskFamily) -> None:
  """Checks what a task family returns. It is traced, and nothing is computed.

  A `Stream` is not checked.

  Args:
    tasks: `(rng) -> Episode`.

  Raises:
    ValueError: if it is no function, or does not return an `Episode` of two
      batches.

  Warns:
    UserWarning: if all tasks are the same, because the key is not used. Random
      numbers of numpy are drawn once, when the function is compiled.
  """
  if isinstance(tasks, Stream):
    return
  if not callable(tasks):
    raise ValueError(
      f"tasks: a {type(tasks).__name__} given, must be a function of a key, "
      "such as metajax.tasks.sinusoid(5, 5)."
    )
  key = jax.random.key(0)
  traced, episode = jax.make_jaxpr(as_partial(tasks), return_shape=True)(key)
  batches = tuple(episode) if isinstance(episode, Episode) else ()
  if not batches or not all(isinstance(x, Batch) for x in batches):
    raise ValueError(
      f"tasks: returned {_named(episode)}, must be Episode(support, query) of "
      "two metajax.Batch(inputs, targets)."
    )
  if not _depends(traced.jaxpr):
    warnings.warn(
      "tasks: all tasks are the same, because the function does not use its "
      "key. Draw from the key by jax.random; numpy draws once, when the "
      "function is compiled.",
      stacklevel=3,
    )


def _named(x: Any) -> str:
  """Returns the names of a type and, of a tuple, of its parts."""
  if isinstance(x, jax.ShapeDtypeStruct):
    return "array"
  if not isinstance(x, tuple):
    return type(x).__name__
  return f"{type(x).__name__}({', '.join(map(_named, x))})"


def _depends(jaxpr: Jaxpr) -> bool:
  """Whether an output depends on an input; yes if that is not known."""
  known = set(jaxpr.invars)

  def is_known(variable: Any) -> bool:
    return not isinstance(variable, Literal) and variable in known

  for eqn in jaxpr.eqns:
    if any(map(is_known, eqn.invars)):
      known.update(eqn.outvars)
  return any(map(is_known, jaxpr.outvars))
