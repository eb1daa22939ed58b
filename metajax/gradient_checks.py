"""Checks of what the functions of a learner return, when they are traced."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax import variables
from metajax.numerics import first_mismatch
from metajax.types import Params


def check_meta_gradient(found: Any, meta_params: Params) -> None:
  """Checks what `meta_grad` of a learner returned.

  Args:
    found: what it returned, or its shapes.
    meta_params: the meta-parameters.

  Raises:
    ValueError: if it is not `(grads, metrics)`, if the gradient has not the
      shapes of the weights, or if the metrics are no dict.
  """
  name = "learner.meta_grad"
  if not isinstance(found, tuple) or len(found) != 2:
    raise ValueError(
      f"{name}: returned {named(found)}, must be (grads, metrics)."
    )
  grads, metrics = found
  _check_like(
    f"{name}: the gradient",
    variables.weights(grads),
    variables.weights(meta_params),
  )
  _check_metrics(name, metrics)


def check_task_loss(found: Any, meta_params: Params) -> None:
  """Checks what the meta-loss of one task returned.

  Args:
    found: what it returned, or its shapes.
    meta_params: the meta-parameters.

  Raises:
    ValueError: if it is neither `(loss, metrics)` nor `(loss, metrics,
      meta_params)`, with a scalar loss and a dict of metrics.
  """
  name = "meta_loss"
  if not isinstance(found, tuple) or len(found) not in (2, 3):
    raise ValueError(
      f"{name}: returned {named(found)}, must be (loss, metrics), or (loss, "
      "metrics, meta_params) with new state."
    )
  loss, metrics = found[:2]
  if not jax.tree_util.all_leaves([loss]) or jnp.shape(loss) != ():
    raise ValueError(
      f"{name}: a loss of the shape {jax.tree.map(jnp.shape, loss)}, must be a "
      "scalar; take the mean over the examples."
    )
  _check_metrics(name, metrics)
  if len(found) == 3 and found[2] is not None:
    _check_like(
      f"{name}: the third result, the meta-parameters with new state,",
      found[2],
      meta_params,
    )


def _check_metrics(name: str, metrics: Any) -> None:
  if not isinstance(metrics, Mapping):
    raise ValueError(
      f"{name}: metrics are a {named(metrics)}, must be a dict of scalars by "
      "name, {'loss': loss}."
    )


def _check_like(name: str, found: Any, wanted: Any) -> None:
  """Raises a `ValueError` where two trees differ in paths or shapes."""
  if (differs := first_mismatch(found, wanted)) is not None:
    path, given, needed = differs
    raise ValueError(
      f"{name} has the shape {given} at {path or 'its root'}, must be "
      f"{needed}, as in the meta-parameters."
    )


def named(x: Any) -> str:
  """Returns the names of a type and, of a tuple, of its parts."""
  if isinstance(x, jax.ShapeDtypeStruct | jax.Array):
    return "array"
  if not isinstance(x, tuple):
    return type(x).__name__
  return f"{type(x).__name__}({', '.join(map(named, x))})"
