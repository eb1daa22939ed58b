"""Grids over hyper-parameters, for integrals over them."""

import itertools
from collections.abc import Sequence

import numpy as np

from metajax.tasks.covariances import Hyper

Range = float | tuple[float, float]  # a number, or the bounds of a uniform one


def checked_range(name: str, given: Range) -> tuple[float, float]:
  """Returns the bounds of a hyper-parameter, which are equal if it is fixed.

  Raises:
    ValueError: unless they are above 0 and in order.
  """
  try:
    low, high = given if isinstance(given, tuple | list) else (given, given)
    good = 0 < low <= high < float("inf")
  except (TypeError, ValueError):  # Not two, or not numbers.
    good = False
  if not good:
    raise ValueError(
      f"{name}={given}: must be above 0, or two such numbers (low, high)."
    )
  return float(low), float(high)


def midpoint_grid(
  bounds: list[tuple[float, float]], nodes: int | Sequence[int]
) -> tuple[Hyper, np.ndarray]:
  """Returns the points of the midpoint rule in the logarithms.

  ::

    log h = log low + (i + 1/2) / n (log high - log low),  i = 0, ..., n - 1

  Args:
    bounds: of the hyper-parameters, in the order of `Hyper`.
    nodes: n, for all hyper-parameters that are drawn, or one for each of them.

  Returns:
    The K points of the grid, each `[K]`, and the logarithms of their prior
    weights `[K]`, for hyper-parameters that are uniform between the bounds.

  Raises:
    ValueError: for an impossible number.
  """
  drawn = [low < high for low, high in bounds]
  numbers = list(nodes) if isinstance(nodes, Sequence) else [nodes] * sum(drawn)
  if len(numbers) != sum(drawn) or any(
    not isinstance(n, int | np.integer) or n < 1 for n in numbers
  ):
    raise ValueError(
      f"nodes={nodes}: must be 1 or more, or {sum(drawn)} such numbers, one "
      "for each hyper-parameter that is drawn."
    )
  left = iter(numbers)
  axes = []
  for varies, (low, high) in zip(drawn, bounds, strict=True):
    count = next(left) if varies else 1
    # Midpoints of equal parts of the logarithm.
    part = (np.arange(count) + 0.5) / count
    axes.append(np.log(low) + part * (np.log(high) - np.log(low)))
  logs = np.array(list(itertools.product(*axes)))
  # The density of the logarithm of a uniform number is that number.
  weights = logs[:, drawn].sum(1)
  weights -= np.logaddexp.reduce(weights)
  return Hyper(*np.exp(logs).T), weights
