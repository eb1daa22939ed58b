"""Labels of the axes of arrays, which can be tied, split and fixed.

An axis is a list of units. They are the factors of its size, and the last one
varies fastest. The labels of an array are its axes.
"""

import math
from collections.abc import Iterable, Sequence

FIXED = True


class Unit:
  """A factor of an axis. Rules may tie it to other units or split it."""

  def __init__(self, size: int, fixed: bool = False):
    self.size, self.fixed = size, fixed
    self.parts: list[Unit] | None = None  # The units that replace this one.

  def found(self) -> "list[Unit]":
    """Returns the units that now replace this one; itself if none do."""
    if self.parts is None:
      return [self]
    self.parts = [unit for part in self.parts for unit in part.found()]
    return self.parts

  def become(self, *parts: "Unit") -> None:
    """Replaces this unit by the product of other units."""
    for part in parts:
      part.fixed |= self.fixed
    self.parts = list(parts)


Labels = list[list[Unit]]


def labels_of(shape: Sequence[int], fixed: bool = False) -> Labels:
  """Returns new labels for an array, which are not tied to others."""
  return [[Unit(size, fixed)] for size in shape]


def units(axis: Iterable[Unit]) -> list[Unit]:
  """Returns the units of one or more axes, without those of size 1."""
  return [u for unit in axis for u in unit.found() if u.size != 1]


def fix(*labels: Labels) -> None:
  """Fixes the order of all axes of some arrays."""
  for axis in (axis for label in labels for axis in label):
    for unit in units(axis):
      unit.fixed = True


def unify(one: list[Unit], other: list[Unit]) -> None:
  """Ties two axes of the same size, so that they are permuted alike."""
  one, other = units(one), units(other)
  while one and other:
    a, b = one[0], other[0]
    if a is b:
      one, other = one[1:], other[1:]
    elif a.size == b.size:
      a.become(b)
    elif a.size % b.size == 0:
      a.become(Unit(b.size), Unit(a.size // b.size))
    elif b.size % a.size == 0:
      b.become(Unit(a.size), Unit(b.size // a.size))
    else:
      fix([one, other])
      return
    one, other = units(one), units(other)


def unify_all(some: Sequence[Labels], others: Sequence[Labels]) -> None:
  """Ties the axes of two lists of arrays, which have the same shapes."""
  for one, other in zip(some, others, strict=True):
    for a, b in zip(one, other, strict=True):
      unify(a, b)


def regroup(axes: Labels, shape: Sequence[int]) -> Labels:
  """Returns the axes of a reshaped array."""
  rest = units(unit for axis in axes for unit in axis)
  result: Labels = []
  for size in shape:
    axis: list[Unit] = []
    while size > 1 and rest:
      first = rest[0]
      if size % first.size == 0:
        axis.append(first)
        size //= first.size
        rest = rest[1:]
      elif first.size % size == 0:
        first.become(Unit(size), Unit(first.size // size))
      else:  # Neither size divides the other, so the axis has no such factors.
        fix(axes)
        return labels_of(shape, FIXED)
      rest = units(rest)
    result.append(axis)
  return result


def size_of(axis: list[Unit]) -> int:
  """Returns the size of an axis."""
  return math.prod(unit.size for unit in axis)


def kept_where(
  axes: Labels, shape: Sequence[int], whole: Sequence[bool]
) -> Labels:
  """Keeps the labels of the axes that are `whole`, and fixes the others."""
  fix([axis for axis, kept in zip(axes, whole, strict=True) if not kept])
  return [
    axis if kept else [Unit(size, FIXED)]
    for axis, size, kept in zip(axes, shape, whole, strict=True)
  ]
