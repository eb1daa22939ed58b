"""Describes the hidden units that the axes of a model's arrays count."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metajax.types import Params

# What an axis counts:
# - None: entries in a fixed order (inputs, outputs, positions of a filter).
# - A name: the units of that group. The axis may also be positions times units,
#   where the units vary fastest (a flattened image).
# - A sequence of (name or None, size): a product of factors, where the last one
#   varies fastest.
Axis = str | None | Sequence[tuple[str | None, int]]
# The axes of each array, by its path as `jax.tree_util.keystr` writes it. A
# group may be on several axes of an array.
UnitAxes = Mapping[str, Sequence[Axis]]
Factors = tuple[tuple[str | None, int], ...]


def chain_axes(params: Params, layers: Sequence[Sequence[str]]) -> UnitAxes:
  """Describes a chain of layers, in which each layer reads only the one before.

  The last axis of an array counts the units of its layer. If the array has more
  axes, the last but one counts the units of the layer before. This is the
  format of flax's dense and convolution kernels, biases, and scales of
  normalisations. If a dense layer reads a flattened image, its last axis but
  one is positions times channels.

  Use `unit_axes` for networks with skip connections or attention, which are no
  chains. Use it, too, for normalisation over groups of channels. Such a
  normalisation limits the order of the channels, and `chain_axes` cannot see
  that.

  Args:
    params: the parameters of one model.
    layers: the names of the modules (or arrays) of each layer, in order, such
      as `[["Conv_0", "BatchNorm_0"], ["head/Dense_0"]]`. A name is the full
      path, with its keys joined by "/". The first key of a tree of flax's
      collections (`params`) may be left out. The order of the first layer's
      inputs and of the last layer's outputs is fixed.

  Returns:
    The axes of each array by its path. A group has the first name of its layer.

  Raises:
    ValueError: for a layer without arrays or with two kernels; for an array
      that is in no layer or in several, or that has no axes; or for axes whose
      sizes do not fit one another.
  """
  axes: dict[str, tuple[Axis, ...]] = {}
  sizes: dict[str, int] = {}
  leaves = jax.tree_util.tree_leaves_with_path(params)
  collections = isinstance(params, Mapping) and "params" in params
  for index, names in enumerate(layers):
    found, kernels = False, {}
    for path, leaf in leaves:
      keys = [_key(entry) for entry in path]
      places = [keys, keys[:-1]]
      if collections:
        places += [keys[1:], keys[1:-1]]
      if not {"/".join(place) for place in places if place} & set(names):
        continue
      name, found = jax.tree_util.keystr(path), True
      if name in axes:
        raise ValueError(f"layers: {name} is in more than one of them.")
      if not leaf.ndim:
        raise ValueError(f"layers: {name} is a scalar, it has no units.")
      if leaf.ndim > 1:
        kernels[name] = leaf
      if len(kernels) > 1:
        raise ValueError(
          f"layers: {' and '.join(kernels)} are in one layer, which has one "
          "kernel; of a network that is no chain, unit_axes finds the groups."
        )
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
  for path, _ in leaves:
    if jax.tree_util.keystr(path) not in axes:
      raise ValueError(
        f"layers: {jax.tree_util.keystr(path)} is in none of them."
      )
  return axes


def permute_units(
  params: Params, permutations: Mapping[str, np.ndarray], axes: UnitAxes
) -> Params:
  """Permutes hidden units. The model still computes the same function.

  Args:
    params: the parameters of one model.
    permutations: a permutation `[units]` for some or all groups. Unit
      `permutation[i]` becomes the i-th.
    axes: see `chain_axes` and `unit_axes`.

  Raises:
    ValueError: for a permutation of no group, one that is no permutation or
      whose length does not fit an axis, or arrays that `axes` does not
      describe.
  """
  known = {group for entry in axes.values() for group in _groups(entry)}
  for group, order in permutations.items():
    if group not in known:
      raise ValueError(
        f"permutations: {group} is no group of axes, which has {sorted(known)}."
      )
    if not np.array_equal(np.sort(order), np.arange(len(order))):
      raise ValueError(
        f"permutations: that of {group} must have each of 0 to "
        f"{len(order) - 1} once."
      )
  sizes = {group: len(order) for group, order in permutations.items()}

  def permute(path: Sequence[Any], leaf: Any) -> Any:
    for axis, found in enumerate(described(path, leaf, axes)):
      factors = split(found, leaf.shape[axis], sizes)
      if any(group in permutations for group, _ in factors):
        index = np.arange(leaf.shape[axis]).reshape([n for _, n in factors])
        for place, (group, _) in enumerate(factors):
          if group is not None and group in permutations:
            index = index.take(permutations[group], place)
        leaf = leaf.take(index.reshape(-1), axis)
    return leaf

  return jax.tree_util.tree_map_with_path(permute, params)


def group_sizes(
  shapes: Mapping[str, Sequence[int]], axes: UnitAxes
) -> dict[str, int]:
  """Returns the number of units of each group, by name.

  If no axis gives a group's size explicitly, the size is that of the smallest
  axis. The other axes are positions times units.
  """
  exact: dict[str, int] = {}
  least: dict[str, int] = {}
  for path, found in axes.items():
    for size, axis in zip(shapes[path], found, strict=True):
      if isinstance(axis, str):
        least[axis] = min(least.get(axis, size), size)
      else:
        exact.update({g: n for g, n in axis or () if g is not None})
  return least | exact


def split(axis: Axis, size: int, sizes: Mapping[str, int]) -> Factors:
  """Returns the factors `(group or None, size)` of an axis of `size`.

  Raises:
    ValueError: if the sizes of the groups do not fit the axis.
  """
  if axis is None or (isinstance(axis, str) and axis not in sizes):
    return ((None, size),)
  if isinstance(axis, str):
    positions, rest = divmod(size, sizes[axis])
    if rest or not positions:
      raise ValueError(
        f"permutations: {axis} has {sizes[axis]} units, which do not divide an "
        f"axis of {size}."
      )
    return ((None, positions), (axis, sizes[axis]))
  for group, units in axis:
    if group is not None and sizes.get(group, units) != units:
      raise ValueError(
        f"permutations: {group} has {sizes[group]} units, but {units} on an "
        f"axis of {size}."
      )
  return tuple(axis)


def described(path: Sequence[Any], leaf: Any, axes: UnitAxes) -> Sequence[Axis]:
  """Returns the entry of `axes` for one array.

  Raises:
    ValueError: if there is no entry, or if it has another number of axes.
  """
  name = jax.tree_util.keystr(tuple(path))
  if name not in axes:
    raise ValueError(f"axes: {name} is not described.")
  if len(axes[name]) != leaf.ndim:
    raise ValueError(
      f"axes: {name} is described by {len(axes[name])} axes but has "
      f"{leaf.ndim}."
    )
  return axes[name]


def _groups(axes: Sequence[Axis]) -> set[str]:
  """Returns the names of the groups on the axes of an array."""
  factors = (((x, 0),) if isinstance(x, str) else x or () for x in axes)
  return {group for axis in factors for group, _ in axis if group is not None}


def _key(entry: Any) -> str:
  for name in ("key", "name", "idx"):
    if hasattr(entry, name):
      return str(getattr(entry, name))
  return str(entry)
