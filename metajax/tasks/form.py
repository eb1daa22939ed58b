"""The form of few-shot tasks: numbers of classes and examples."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Bounds = tuple[int, int]  # least and most
Number = int | Bounds


class Form(NamedTuple):
  """The numbers that all episodes of a family have in common.

  Attributes:
    ways: least and most classes of a task.
    shots: least and most support examples of a class.
    query_shots: least and most query examples of a class.
    num_rotations: 1 (none), 2 (0 and 90 degrees) or 4.
    num_classes: number of classes, rotations not included.
    most: examples of the largest class.
    small_classes: whether a class may have fewer examples than a task needs.
  """

  ways: Bounds
  shots: Bounds
  query_shots: Bounds
  num_rotations: int
  num_classes: int
  most: int
  small_classes: bool

  @property
  def masked(self) -> bool:
    """Whether a task may have fewer examples than its arrays."""
    bounds = (self.ways, self.shots, self.query_shots)
    return self.small_classes or any(low < high for low, high in bounds)


def checked_arrays(tree: Any, name: str, axes: str, num_axes: int) -> Any:
  """Checks that arrays agree in their first axes, and returns them as a tree.

  Raises:
    ValueError: if they do not, or if they are not numbers.

  Warns:
    UserWarning: if an array of uint8 has no number above 1: it is no image, or
      an image of 0 and 1, and will be divided by 255 all the same.
  """
  arrays = jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else np.asarray(x), tree
  )
  leaves = jax.tree.leaves(arrays)
  if not leaves or any(
    x.ndim < num_axes
    or not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool)
    for x in leaves
  ):
    given = ", ".join(f"{x.dtype} {x.shape}" for x in leaves[:3]) or "nothing"
    more = f" and {len(leaves) - 3} more" if len(leaves) > 3 else ""
    raise ValueError(f"{name}: {given}{more} given, must be numbers {axes}.")
  sizes = sorted({x.shape[:num_axes] for x in leaves})
  if len(sizes) > 1:
    raise ValueError(
      f"{name}: arrays of first axes {sizes} given, must be equal: {axes}."
    )
  for path, x in jax.tree_util.tree_leaves_with_path(arrays):
    if x.dtype == np.uint8 and x.size and x.max() == 1:
      warnings.warn(
        f"{name}{jax.tree_util.keystr(path)}: uint8 numbers of 0 and 1 are "
        "divided by 255, as images are. Give masks in bool, and other numbers "
        "in float32.",
        stacklevel=4,
      )
  return arrays


def form_of(
  arrays: Any,
  *,
  num_examples: np.ndarray,
  ways: Number,
  shots: Number,
  query_shots: Number,
  num_rotations: int,
  small_classes: bool,
  axes: str,
) -> Form:
  """Returns the form of the episodes.

  Raises:
    ValueError: if no episode can be drawn from the arrays.
  """
  if num_rotations not in (1, 2, 4):
    raise ValueError(f"num_rotations={num_rotations}: must be 1, 2 or 4.")
  leaves = jax.tree.leaves(arrays)
  if num_rotations > 1 and any(x.ndim != axes.count(",") + 1 for x in leaves):
    raise ValueError(
      f"num_rotations={num_rotations}: inputs of {leaves[0].shape} cannot "
      f"turn, they must be images {axes}."
    )
  if num_rotations > 1 and any(x.shape[-3] != x.shape[-2] for x in leaves):
    height, width = leaves[0].shape[-3:-1]
    raise ValueError(
      f"num_rotations={num_rotations}: images of {height} x {width} cannot "
      "turn, they must be square."
    )
  form = Form(
    ways=checked_bounds("ways", ways, 2),
    shots=checked_bounds("shots", shots, 1),
    query_shots=checked_bounds("query_shots", query_shots, 1),
    num_rotations=num_rotations,
    num_classes=len(num_examples),
    most=int(max(num_examples, default=0)),
    small_classes=small_classes,
  )
  if form.ways[1] > form.num_classes * num_rotations:
    raise ValueError(
      f"ways={ways}: must be at most {form.num_classes * num_rotations}, the "
      "number of classes (rotations included)."
    )
  fewest = min(num_examples)
  if small_classes and fewest < 2:
    raise ValueError(
      f"small_classes: the smallest class has {fewest} examples, must be 2 or "
      "more, one for the support and one for the queries: remove the class."
    )
  if not small_classes and form.shots[1] + form.query_shots[1] > fewest:
    raise ValueError(
      f"shots={shots} and query_shots={query_shots}: together at most "
      f"{fewest}, the number of examples of the smallest class: give smaller "
      "ones, or remove the smallest classes. (In Python, small_classes=True "
      "masks the missing examples.)"
    )
  return form


def checked_bounds(name: str, number: Number, least: int) -> Bounds:
  """Returns a number, or two, as its bounds, all of them `least` or more."""
  bounds = number if isinstance(number, tuple | list) else (number, number)
  if (
    len(bounds) != 2
    or not all(isinstance(x, int | np.integer) for x in bounds)
    or not least <= bounds[0] <= bounds[1]
  ):
    raise ValueError(
      f"{name}={number}: must be {least} or more, or two such numbers "
      "(low, high)."
    )
  return int(bounds[0]), int(bounds[1])
