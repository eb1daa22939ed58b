"""Loss curves of trainings by several optimizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.runs import plots


class Curves(NamedTuple):
  """How an optimizer trained, with one row for each seed.

  Attributes:
    losses: `[seeds, points + 1]`, on the whole training set, at equal
      distances from before the first step to after the last.
    accuracy: `[seeds]`, on the test set after the last step, in percent.
  """

  losses: np.ndarray
  accuracy: np.ndarray


def scores(curves: Curves) -> dict[str, np.ndarray]:
  """Returns the scores of each seed, `[seeds]`."""
  tenth = -(-curves.losses.shape[1] // 10)
  return {
    "loss": curves.losses.mean(1),
    "last_loss": curves.losses[:, -tenth:].mean(1),
    "accuracy": curves.accuracy,
  }


def medians(curves: Curves) -> list[float]:
  """Returns the median loss over seeds at a tenth of the points."""
  return [float(f"{x:.4g}") for x in np.median(curves.losses, 0)[::5]]


def draw(
  path: Path,
  steps: Mapping[str, int],
  curves: Mapping[str, Mapping[str, Curves]],
) -> None:
  """Draws a panel for each problem: median losses, and bands over seeds.

  Args:
    path: the PNG file.
    steps: the number of steps by problem.
    curves: by problem and optimizer. A band is from the tenth to the ninetieth
      percentile.
  """
  figure, axes = plots.pyplot().subplots(
    1,
    len(curves),
    figsize=(3.2 * len(curves), 3.6),
    layout="constrained",
    squeeze=False,
  )
  for panel, (name, found) in zip(axes[0], curves.items(), strict=True):
    for i, (optimizer, each) in enumerate(found.items()):
      places = np.linspace(0, steps[name], each.losses.shape[1])
      low, middle, high = np.quantile(each.losses, [0.1, 0.5, 0.9], axis=0)
      panel.plot(places, middle, color=f"C{i}", label=optimizer)
      panel.fill_between(places, low, high, color=f"C{i}", alpha=0.2, lw=0)
    panel.set(title=name.replace("_", " "), xlabel="steps", yscale="log")
    panel.grid(alpha=0.3)
  axes[0, 0].set(ylabel="training loss")
  # The last problem has the most lines.
  handles, labels = axes[0, -1].get_legend_handles_labels()
  labels = [x.replace("_", " ") for x in labels]
  figure.legend(
    handles, labels, loc="outside lower center", ncols=4, frameon=False
  )
  plots.save(figure, path)
