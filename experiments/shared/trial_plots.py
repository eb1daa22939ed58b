"""Draws the learning curves of players, and what they earn in a trial."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metajax.evaluation import Estimate, estimate
from metajax.runs import plots

BINS = 20  # Points of the curve of rewards within a trial.


def by_time(rewards: np.ndarray) -> dict[float, Estimate]:
  """Returns mean rewards of a step in each part of a trial, by its middle.

  Args:
    rewards: `[tasks, T]`.
  """
  edges = np.linspace(0, rewards.shape[1], BINS + 1).astype(int)
  return {
    (a + b) / 2: estimate(rewards[:, a:b].mean(-1))
    for a, b in zip(edges, edges[1:], strict=False)
    if b > a
  }


def learning(
  path: Path,
  lines: Mapping[str, Mapping[float, float]],
  levels: Mapping[str, float],
  xlabel: str,
  ylabel: str,
) -> None:
  """Draws scores of trained players, and constant scores as horizontal lines.

  Args:
    path: the PNG file.
    lines: by the name in the legend, scores by their place on the axis.
    levels: constant scores by the name beside their line.
    xlabel: the name of the horizontal axis.
    ylabel: the name of the vertical axis, the score.
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
