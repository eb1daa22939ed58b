"""Permutes the hidden units of models so that they can be averaged."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.aggregation.stacks import check_stack
from metajax.types import Params

# The group of units along each axis of an array, by the array's path; None
# where the order is fixed (inputs, outputs, positions of a filter).
UnitAxes = Mapping[str, Sequence[str | None]]
Permutations = dict[str, np.ndarray]  # group -> the unit that comes i-th


def chain_axes(params: Params, layers: Sequence[Sequence[str]]) -> UnitAxes:
  """Describes a chain of layers, each of which reads the one before.

  An array belongs to the layer whose name is among the keys of its path. Its
  last axis counts the layer's units, and of arrays with more axes the last but
  one counts the units of the layer before: flax's dense and convolution
  kernels, biases, and the scales of normalisations. Where a dense layer reads a
  flattened image, that axis is positions times channels.

  Normalisation over groups of channels ties the order of channels to the
  groups; a network with it cannot be permuted.

  Args:
    params: the parameters of one model.
    layers: the names of what makes up each layer, in order, such as
      `[["Conv_0", "BatchNorm_0"], ["Dense_0"]]`. The first layer's inputs and
      the last one's outputs stay in place.

  Returns:
    The groups of units by path, each named by the layer's first name.

  Raises:
    ValueError: for a layer without arrays, an array in no or several layers or
      without axes, or axes that do not fit one another.
  """
  axes: dict[str, tuple[str | None, ...]] = {}
  sizes: dict[str, int] = {}
  for index, names in enumerate(layers):
    found = False
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      if not set(names) & {_key(entry) for entry in path}:
        continue
      name, found = jax.tree_util.keystr(path), True
      if name in axes:
        raise ValueError(f"layers: {name} is in more than one of them.")
      if not leaf.ndim:
        raise ValueError(f"layers: {name} is a scalar, it has no units.")
      out = names[0] if index < len(layers) - 1 else None
      read = layers[index - 1][0] if index and leaf.ndim > 1 else None
      if out and sizes.setdefault(out, leaf.shape[-1]) != leaf.shape[-1]:
        raise ValueError(
          f"layers: {name} has {leaf.shape[-1]} units, but another array of "
          f"its layer {sizes[out]}."
        )
      if read and leaf.shape[-2] % sizes[read]:
        raise ValueError(
          f"layers: {name} reads {leaf.shape[-2]} numbers, which are no "
          f"multiple of the {sizes[read]} units of the layer before."
        )
      axes[name] = (*[None] * max(leaf.ndim - 2, 0), read, out)[-leaf.ndim :]
    if not found:
      raise ValueError(f"layers: no array belongs to {list(names)}.")
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    if jax.tree_util.keystr(path) not in axes:
      raise ValueError(
        f"layers: {jax.tree_util.keystr(path)} is in none of them."
      )
  return axes


def permute_units(
  params: Params, permutations: Mapping[str, np.ndarray], axes: UnitAxes
) -> Params:
  """Reorders hidden units; the function of the model stays what it is.

  Args:
    params: the parameters of one model.
    permutations: for some or all groups, `[units]`: unit `permutation[i]`
      comes i-th. In a flattened image units are channels, which run fastest.
    axes: see `chain_axes`.

  Raises:
    ValueError: for a permutation whose length does not fit an axis.
  """

  def permute(path: Sequence[Any], leaf: Any) -> Any:
    for axis, group in enumerate(axes[jax.tree_util.keystr(tuple(path))]):
      if group is not None and group in permutations:
        order = permutations[group]
        if leaf.shape[axis] % len(order):
          raise ValueError(
            f"permutations: {group} has {len(order)} units, which do not "
            f"divide an axis of {leaf.shape[axis]}."
          )
        offsets = np.arange(0, leaf.shape[axis], len(order))
        leaf = leaf.take((offsets[:, None] + order).reshape(-1), axis)
    return leaf

  return jax.tree_util.tree_map_with_path(permute, params)


def match_units(
  reference: Params,
  model: Params,
  axes: UnitAxes,
  *,
  max_sweeps: int = 100,
  seed: int = 0,
) -> Permutations:
  """Finds which hidden units of two models correspond (weight matching).

  Maximises the inner product of the parameters over permutations P ::

    sum over arrays of  <A, P B>

  by coordinate descent: with all the other groups of units in place, the best
  order of one is a linear assignment problem, solved exactly. The sum never
  falls; it ends in a local optimum, and narrow networks have several: another
  seed may find a better one.

  Args:
    reference: A.
    model: B, a tree like it.
    axes: see `chain_axes`.
    max_sweeps: passes over all groups of units at most.
    seed: of the order in which the groups are visited.

  Returns:
    Permutations for `permute_units(model, ..., axes)`.

  References:
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    algorithm 1.
  """
  # Takes as long to import as JAX does, which only matching should pay.
  from scipy.optimize import linear_sum_assignment

  rng = np.random.default_rng(seed)
  target = _numpy_leaves(reference)
  source = jax.tree.map(np.asarray, model)
  found = {
    group: np.arange(_group_size(group, target, axes))
    for group in sorted({g for groups in axes.values() for g in groups if g})
  }
  for _ in range(max_sweeps):
    improved = False
    for group in rng.permutation(sorted(found)):
      others = {g: p for g, p in found.items() if g != group}
      moved = _numpy_leaves(permute_units(source, others, axes))
      similarity = np.zeros((len(found[group]),) * 2)
      for name, groups in axes.items():
        for axis, other in enumerate(groups):
          if other == group:
            one = _units_first(target[name], axis, len(found[group]))
            two = _units_first(moved[name], axis, len(found[group]))
            similarity += one @ two.T
      _, order = linear_sum_assignment(similarity, maximize=True)
      rows = np.arange(len(order))
      gain = similarity[rows, order] - similarity[rows, found[group]]
      if gain.sum() > 1e-9 * np.abs(similarity).max():
        found[group], improved = order, True
    if not improved:
      break
  return found


def align_stack(stack: Params, axes: UnitAxes, *, rounds: int = 1) -> Params:
  """Aligns every model of a stack, for their average to make sense.

  In the first round the others to model 0; in each later round every one, model
  0 too, to the mean of all the others, until nothing changes.

  Args:
    stack: a tree of arrays `[models, ...]`.
    axes: see `chain_axes`.
    rounds: rounds at most, at least 1.

  Returns:
    A stack of models that compute what they did.

  Raises:
    ValueError: see `check_stack`; if `rounds` is less than 1.

  References:
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    algorithms 1 and 3.
  """
  if rounds < 1:
    raise ValueError(f"rounds={rounds}: must be 1 or more.")
  size = check_stack(stack)
  models = [
    jax.tree.map(lambda leaf, m=m: np.asarray(leaf[m]), stack)
    for m in range(size)
  ]

  def align(m: int, reference: Params, seed: int) -> bool:
    order = match_units(reference, models[m], axes, seed=seed)
    models[m] = permute_units(models[m], order, axes)
    return any(np.any(p != np.arange(len(p))) for p in order.values())

  for m in range(1, size):
    align(m, models[0], seed=0)
  for seed in range(1, rounds if size > 1 else 1):
    changed = False
    for m in range(size):
      # Their sum, whose scale does not matter.
      others = jax.tree.map(_sum, *models[:m], *models[m + 1 :])
      changed |= align(m, others, seed)
    if not changed:
      break
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def _sum(*arrays: np.ndarray) -> np.ndarray:
  return np.sum(arrays, axis=0)


def _numpy_leaves(params: Params) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
    jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
    for path, leaf in leaves
  }


def _group_size(
  group: str, leaves: Mapping[str, np.ndarray], axes: UnitAxes
) -> int:
  """The smallest axis of the group: others are multiples, by positions."""
  return min(
    leaves[name].shape[axis]
    for name, groups in axes.items()
    for axis, other in enumerate(groups)
    if other == group
  )


def _units_first(leaf: np.ndarray, axis: int, units: int) -> np.ndarray:
  """Returns `[units, all the rest]`."""
  leaf = np.moveaxis(leaf, axis, -1)
  return np.moveaxis(leaf.reshape(-1, units), -1, 0)


def _key(entry: Any) -> str:
  return str(getattr(entry, "key", getattr(entry, "name", entry)))
