"""Checks of a learner and a task family, before anything is compiled."""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from metajax.gradient_checks import named
from metajax.types import (
  Batch,
  Episode,
  MetaLearner,
  Stream,
  TaskFamily,
  as_partial,
)

_NOT_COMPILED = (
  jax.errors.ConcretizationTypeError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
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
    ValueError: if it is no function, cannot be compiled, or does not return an
      `Episode` of two batches, each with as many targets and mask entries as
      inputs.

  Warns:
    UserWarning: if all tasks are the same, because the key is not used. Random
      numbers of numpy are drawn once, when the function is compiled.
  """
  if isinstance(tasks, Stream):
    return
  makes_generators = inspect.isgeneratorfunction(tasks)
  if not callable(tasks) or makes_generators:
    kind = "generator" if makes_generators else type(tasks).__name__
    raise ValueError(
      f"tasks: a {kind} given, must be a function (rng) -> Episode. "
      "metajax.tasks.host_tasks makes one of a Python generator."
    )
  key = jax.random.key(0)
  try:
    traced, episode = jax.make_jaxpr(as_partial(tasks), return_shape=True)(key)
  except _NOT_COMPILED as error:
    raise ValueError(
      "tasks: the function cannot be compiled, because it needs the value of a "
      f"traced array ({str(error).splitlines()[0]}). Draw by jax.random and "
      "compute by jax.numpy, or let metajax.tasks.host_tasks call numpy."
    ) from error
  batches = tuple(episode) if isinstance(episode, Episode) else ()
  if not batches or not all(isinstance(x, Batch) for x in batches):
    raise ValueError(
      f"tasks: returned {named(episode)}, must be Episode(support, query) of "
      "two metajax.Batch(inputs, targets)."
    )
  for name, batch in zip(Episode._fields, batches, strict=True):
    check_batch(f"tasks: the {name}", batch)
  if not _depends(traced.jaxpr):
    warnings.warn(
      "tasks: all tasks are the same, because the function does not use its "
      "key. Draw from the key by jax.random; numpy draws once, when the "
      "function is compiled (metajax.tasks.host_tasks calls it for each task).",
      stacklevel=3,
    )


def check_batch(name: str, batch: Batch) -> None:
  """Checks that a batch has as many targets and mask entries as inputs.

  Args:
    name: what the message calls the batch.
    batch: arrays, or their shapes.

  Raises:
    ValueError: if it has not, or if the mask is not bool.
  """
  leaves = jax.tree.leaves((batch.inputs, batch.targets))
  if any(not jnp.shape(x) for x in leaves) or not leaves:
    shapes = _shapes((batch.inputs, batch.targets))
    raise ValueError(
      f"{name} has inputs and targets of {shapes}, must be [n, ...]: the first "
      "axis is that of the examples."
    )
  sizes = {jnp.shape(x)[0] for x in leaves}
  if len(sizes) > 1:
    raise ValueError(
      f"{name} has inputs of {_shapes(batch.inputs)} and targets of "
      f"{_shapes(batch.targets)}, must have equal first axes: the examples."
    )
  mask = batch.mask
  if mask is None:
    return
  kind, shape = jnp.result_type(mask), jnp.shape(mask)
  is_bool = jnp.issubdtype(kind, jnp.bool_)
  if not is_bool or shape != (*sizes,):
    raise ValueError(
      f"{name} has a mask of {kind} {shape}, must be bool {(*sizes,)}: True "
      "for real examples."
    )


def _shapes(tree: Any) -> Any:
  return jax.tree.map(jnp.shape, tree)


def _depends(jaxpr: Jaxpr) -> bool:
  """Whether an output depends on an input; yes if that is not known."""
  known = set(jaxpr.invars)

  def is_known(variable: Any) -> bool:
    return not isinstance(variable, Literal) and variable in known

  for eqn in jaxpr.eqns:
    if any(map(is_known, eqn.invars)):
      known.update(eqn.outvars)
  return any(map(is_known, jaxpr.outvars))
