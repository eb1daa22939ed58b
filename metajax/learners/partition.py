"""Splits parameters into those that adapt to a task and those that do not."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Params

# A tree of booleans like the parameters, or a function `(params) -> tree`.
Mask = Any | Callable[[Params], Any]

_DENSE = re.compile(r"Dense_(\d+)")
# Default names of flax's normalisations (InstanceNorm_0), and other common
# names: bn1, norm, layer_norm, ...
_NORM = re.compile(r"(?i)(\w*norm|[bligr]n)_?\d*")


def split(params: Params, mask: Mask | None) -> tuple[Params, Params]:
  """Splits parameters into those that adapt and those that do not.

  Args:
    params: a tree of arrays.
    mask: a tree of booleans like `params`, or a function `(params) -> tree`, as
      in optax. If None, all parameters adapt.

  Returns:
    `(fast, slow)`, two trees like `params`. Each has None in the place of the
    arrays of the other.

  Raises:
    ValueError: if nothing adapts, or if a leaf of the mask is no boolean.
  """
  if mask is None:
    return params, jax.tree.map(lambda _: None, params)
  mask = mask(params) if callable(mask) else mask
  for leaf in jax.tree.leaves(mask):
    if isinstance(leaf, str) or jnp.shape(leaf) != ():
      given = repr(leaf) if isinstance(leaf, str) else "an array"
      raise ValueError(
        f"mask: {given} given, must be True or False for each array of the "
        "parameters: a tree like them, or a function of them."
      )
  if not any(jax.tree.leaves(mask)):
    raise ValueError("mask: is False everywhere, so that nothing adapts.")

  def keep(chosen: bool) -> Params:
    return jax.tree.map(
      lambda x, adapts: x if x is not None and adapts is chosen else None,
      params,
      jax.tree.map(bool, mask),
      is_leaf=lambda x: x is None,
    )

  return keep(True), keep(False)


def merge(fast: Params, slow: Params) -> Params:
  """Merges the two trees that `split` returns."""
  return jax.tree.map(
    lambda x, y: y if x is None else x, fast, slow, is_leaf=lambda x: x is None
  )


def last_layer(params: Params) -> Params:
  """Masks the last of a flax model's layers `Dense_0`, `Dense_1`, ...

  If models are nested, only the layers of the outermost model count. Its head
  is the last layer, not a layer in one of its blocks.

  Raises:
    ValueError: if no layer has such a name; if several inner models have such
      layers and the outer model has none; or if there is a dense layer of
      another name beside them. Write your own mask in these cases.
  """
  layers = {}  # path of the layer -> its number
  for path in _paths(params):
    for i, key in enumerate(path):
      if m := _DENSE.fullmatch(_key(key)):
        layers[path[: i + 1]] = int(m[1])
        break
  if not layers:
    raise ValueError(
      "mask: there is no layer Dense_0, Dense_1, ...; give a mask of your own."
    )
  depth = min(map(len, layers))
  outer = {path: n for path, n in layers.items() if len(path) == depth}
  if len({path[:-1] for path in outer}) > 1:
    raise ValueError(
      "mask: several inner models have layers Dense_0, ..., and any may be the "
      "last; give a mask of your own."
    )
  (parent,) = {path[:-1] for path in outer}
  for path, leaf in jax.tree.leaves_with_path(params):
    beside = path[:-2] == parent and path[:-1] not in outer
    if beside and _key(path[-1]) == "kernel" and jnp.ndim(leaf) == 2:
      raise ValueError(
        f"mask: beside Dense_0, ... there is a layer {_key(path[-2])}, and "
        "either may be the last; give a mask of your own."
      )
  last = max(outer, key=lambda path: outer[path])
  return jax.tree.map_with_path(lambda path, _: path[:depth] == last, params)


def all_but_last_layer(params: Params) -> Params:
  """Masks all parameters that `last_layer` does not mask."""
  return jax.tree.map(lambda is_last: not is_last, last_layer(params))


def normalization(params: Params) -> Params:
  """Masks normalisations by their names: `BatchNorm_0`, `bn1`, `RMSNorm`, ...

  Raises:
    ValueError: if no layer has such a name. Write your own mask in this case.
  """
  mask = jax.tree.map_with_path(
    lambda path, _: any(_NORM.fullmatch(_key(key)) for key in path), params
  )
  if not any(jax.tree.leaves(mask)):
    raise ValueError(
      "mask: no layer is called like a normalisation (BatchNorm_0, bn1, norm, "
      "...); give a mask of your own, or switch off what needs one, such as "
      "step_normalization=False of maml_plus_plus."
    )
  return mask


def _key(key: Any) -> str:
  """Returns the name of a path entry; "" for an entry of a sequence."""
  return str(getattr(key, "key", getattr(key, "name", "")))


def _paths(params: Params) -> list[tuple]:
  return [path for path, _ in jax.tree.leaves_with_path(params)]
