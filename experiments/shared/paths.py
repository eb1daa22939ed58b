"""A picture of paths in the plane, while a player adapts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metajax.runs.plots import pyplot, save
from metajax.types import Array


def draw(
  path: Path,
  goals: Array,
  observations: Array,
  mask: Array,
  titles: Sequence[str],
  *,
  shown: int = 4,
) -> None:
  """Draws a row for each task, and a column for each stage of adaptation.

  Args:
    path: the PNG file.
    goals: `[tasks, 2]`.
    observations: `[tasks, stages, E, T, ...]`. They begin with the place.
    mask: `[tasks, stages, E, T]` bool, which steps are real.
    titles: the names of the stages.
    shown: episodes in a panel.
  """
  rows, columns = mask.shape[:2]
  figure, axes = pyplot().subplots(
    rows,
    columns,
    figsize=(2.2 * columns, 2.2 * rows),
    sharex=True,
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for i, goal in enumerate(np.asarray(goals)):
    for k in range(columns):
      panel = axes[i, k]
      for e in range(min(shown, mask.shape[2])):
        places = np.asarray(observations[i, k, e])[np.asarray(mask[i, k, e])]
        panel.plot(*places.T[:2], linewidth=0.8)
      panel.plot(*goal, "k*", markersize=9)
      panel.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), aspect="equal")
      if i == 0:
        panel.set_title(titles[k])
  save(figure, path)
