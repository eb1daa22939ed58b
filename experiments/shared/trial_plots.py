"""Pictures of players: how they learn, and how they walk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.runs import plots


def learning(
  path: Path,
  lines: Mapping[str, Mapping[float, float]],
  levels: Mapping[str, float],
  xlabel: str,
  ylabel: str,
) -> None:
  """Draws scores of what learns, and of what does not as horizontal lines.

  Args:
    path: the PNG file.
    lines: by the name in the legend, scores by their place on the axis.
    levels: scores by the name beside their line.
    xlabel: what passes.
    ylabel: the score.
  """
  figure, axes = plots.pyplot().subplots(figsize=(6, 3.6), layout="constrained")
  for name, line in lines.items():
    axes.plot(list(line), list(line.values()), marker=".", label=name)
  for name, level in levels.items():
    axes.axhline(level, color="grey", lw=0.8, ls=":")
    axes.annotate(
      name,
      (1.0, level),
      xycoords=("axes fraction", "data"),
      fontsize=7,
      va="center",
    )
  axes.set(xlabel=xlabel, ylabel=ylabel)
  axes.grid(alpha=0.3)
  axes.legend()
  plots.save(figure, path)


class Walk(NamedTuple):
  """A way through a maze: places `[n, 2]` (row, column), and the goal `[2]`."""

  places: np.ndarray
  goal: np.ndarray


def walks(
  path: Path, walls: np.ndarray, rows: Mapping[str, Sequence[Walk]]
) -> None:
  """Draws walks through one maze.

  Args:
    path: the PNG file.
    walls: `[rows, columns]`, nonzero where a wall is.
    rows: walks by the name of their row in the picture.
  """
  columns = max(map(len, rows.values()))
  figure, grid = plots.pyplot().subplots(
    len(rows),
    columns,
    figsize=(2.2 * columns, 2.4 * len(rows)),
    layout="constrained",
    squeeze=False,
  )
  for line, (name, all_walks) in zip(grid, rows.items(), strict=True):
    for axes, walk in zip(line, all_walks, strict=False):
      axes.imshow(walls, cmap="Greys", vmax=1.5)
      y, x = walk.places.T
      axes.plot(x, y, color="tab:blue", lw=1.5, alpha=0.7)
      axes.plot(x[0], y[0], "o", color="tab:blue")
      axes.plot(*walk.goal[::-1], "*", color="tab:red", markersize=12)
      axes.set_title(f"{name}: {len(x) - 1} steps", fontsize=8)
      axes.set(xticks=[], yticks=[])
  plots.save(figure, path)
