"""Builds and checks stacks of models: parameters with a leading model axis."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax import variables
from metajax.numerics import first_mismatch, wide
from metajax.types import Array, Params

Leaves = Sequence[tuple[Sequence[Any], Array]]  # (path, leaf)


def stack_models(models: Sequence[Params]) -> Params:
  """Stacks models of one architecture along a leading model axis.

  Args:
    models: trees of floating point arrays. All have the same structure, shapes
      and dtypes.

  Returns:
    A tree of the same structure, whose leaves are `[models, ...]`.

  Raises:
    ValueError: if there is no model, if two differ (the message names the
      first differing path and both shapes), or if one holds NaN or infinity.
  """
  if not models:
    raise ValueError("models: none given, at least one is needed.")
  first = jax.tree_util.tree_leaves_with_path(models[0])
  for index, model in enumerate(models[1:], start=1):
    _check_same(first, jax.tree_util.tree_leaves_with_path(model), index)
  stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
  check_stack(stack)
  return stack


def num_models(stack: Params) -> int:
  """Returns the size of the model axis that all leaves of a stack share."""
  leaves = jax.tree_util.tree_leaves_with_path(stack)
  if not leaves:
    raise ValueError("stack: a tree without arrays, no model to combine.")
  path, leaf = leaves[0]
  shape = jnp.shape(leaf)
  size = shape[0] if shape else 0
  if not size:
    raise ValueError(
      f"stack: {_name(path)} has shape {shape}, must be [models, ...] "
      "with at least one model."
    )
  for other_path, other in leaves:
    if jnp.shape(other)[:1] != (size,):
      raise ValueError(
        f"stack: {_name(path)} has shape {shape} but {_name(other_path)} "
        f"{jnp.shape(other)}: the first axes, the models, must be equal. "
        "stack_models(models) makes a stack."
      )
  return size


def check_stack(stack: Params) -> int:
  """Checks that the models of a stack can be combined; returns their number.

  Values are checked outside of `jit` only, because traced values are not known.
  `State` nodes may hold integers, such as counts.

  Raises:
    ValueError: if the leaves have no common model axis; if a leaf is not
      floating point; or if a model holds NaN or infinity. The message names the
      model.
  """
  size = num_models(stack)
  in_state = set(map(id, jax.tree.leaves(variables.states(stack))))
  for path, leaf in jax.tree_util.tree_leaves_with_path(stack):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      if id(leaf) in in_state:
        continue
      raise ValueError(
        f"stack: {_name(path)} is {leaf.dtype}, only floating point "
        "parameters can be combined."
      )
    if isinstance(leaf, jax.core.Tracer):
      continue
    # Evaluates constants of a traced function, too.
    with jax.ensure_compile_time_eval():
      finite = np.asarray(jnp.isfinite(leaf).reshape(size, -1).all(1))
    if not finite.all():
      raise ValueError(
        f"stack: model {int(np.argmin(finite))} is not finite in "
        f"{_name(path)}; leave it out."
      )
  return size


def check_alike(name: str, model: Params, like: Params) -> None:
  """Checks that two trees have the same arrays, or jnp would broadcast them.

  Args:
    name: the name of the caller's argument.
    model: a tree of arrays.
    like: a tree of arrays, or of their shapes.

  Raises:
    ValueError: if an array is missing or has another shape. The message names
      its path.
  """
  if (differs := first_mismatch(model, like)) is not None:
    path, given, needed = differs
    raise ValueError(
      f"{name}: the shape of {path or 'the array'} is {given}, must be "
      f"{needed}; only models of one architecture can be combined."
    )


def one_of(stack: Params) -> Params:
  """Returns the shapes of one model of a stack."""
  # Not by `leaf[0]`, which explicit shardings over the models refuse.
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stack
  )


def normalized_weights(weights: ArrayLike | None, size: int) -> Array:
  """Returns weights `[size]` that sum to one; equal ones if None.

  They are in float32 at least. The sum of the given weights may overflow.

  Raises:
    ValueError: for another shape, a negative or non-finite weight, or weights
      that are all zero.
  """
  if weights is None:
    return jnp.full(size, 1 / size)
  weights = jnp.asarray(weights)
  if not jnp.issubdtype(weights.dtype, jnp.floating):
    weights = weights.astype(float)  # Integers, such as numbers of examples.
  if weights.shape != (size,):
    raise ValueError(
      f"weights of shape {weights.shape}: must be ({size},), one a model."
    )
  if not isinstance(weights, jax.core.Tracer):
    values = np.asarray(weights)
    if not np.all(np.isfinite(values) & (values >= 0)):
      raise ValueError(f"weights={values}: must be finite and 0 or more.")
    if not values.any():
      raise ValueError(f"weights={values}: one must be above 0.")
  weights = wide(weights)
  # The sum may overflow. So may 1 / max, by which XLA would multiply instead of
  # dividing by max. Two divisions by the root of the maximum avoid both.
  root = jnp.sqrt(jax.lax.stop_gradient(weights.max()))
  weights = weights / root / root
  return weights / weights.sum()


def weighted_sum(weights: Array, leaf: Array) -> Array:
  """Returns `sum_m w_m x_m` for x `[models, ...]`, in float32 at least.

  The product has the highest precision. By default, accelerators multiply
  float32 with fewer bits.
  """
  leaf = wide(leaf)
  return jax.lax.dot_general(
    weights.astype(leaf.dtype),
    leaf,
    (((0,), (0,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
  )


def weighted_mean(weights: Array, stack: Params) -> Params:
  """Returns `sum_m w_m x_m` of each leaf, for weights that sum to one.

  Integers are rounded. Of random keys, the first is taken.
  """

  def of_leaf(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return leaf[0]
    return variables.narrow(weighted_sum(weights, leaf), leaf.dtype)

  return jax.tree.map(of_leaf, stack)


def _check_same(first: Leaves, other: Leaves, index: int) -> None:
  names = [dict((_name(p), x) for p, x in leaves) for leaves in (first, other)]
  for name in [*names[0], *(n for n in names[1] if n not in names[0])]:
    found = [_describe(leaves.get(name)) for leaves in names]
    if found[0] != found[1]:
      raise ValueError(
        f"models: {name} is {found[0]} in model 0 but {found[1]} in model "
        f"{index}; only models of one architecture can be combined."
      )


def _describe(leaf: Array | None) -> str:
  if leaf is None:
    return "missing"
  return f"{jnp.result_type(leaf)} {jnp.shape(leaf)}"


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path)) or "the array"
