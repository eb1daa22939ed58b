"""A picture of paths in the plane, before and after each inner step."""

from pathlib import Path

import numpy as np

from metajax.policies.rollouts import Rollouts
from metajax.runs.plots import pyplot, save
from metajax.types import Array


def draw(
  path: Path, goals: Array, rollouts: Rollouts, *, shown: int = 4
) -> None:
  """Draws a row for each task, and a column for each number of inner steps.

  Args:
    path: the PNG file.
    goals: `[tasks, 2]`.
    rollouts: `[tasks, K + 1, E, T, ...]`, before and after K inner steps.
    shown: episodes in a panel.
  """
  rows, columns = rollouts.mask.shape[:2]
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
      for e in range(min(shown, rollouts.mask.shape[2])):
        places = np.asarray(rollouts.observations[i, k, e])
        places = places[np.asarray(rollouts.mask[i, k, e])]
        panel.plot(*places.T[:2], linewidth=0.8)
      panel.plot(*goal, "k*", markersize=9)
      panel.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), aspect="equal")
      if i == 0:
        panel.set_title(f"{k} step{'s'[: k != 1]}")
  save(figure, path)
