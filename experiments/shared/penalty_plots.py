"""Draws the best validation loss so far against CPU time."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.shared.penalties import Tuned
from metajax.runs import plots


def draw(path: Path, problems: Mapping[str, Mapping[str, Tuned]]) -> None:
  """Draws one panel for each problem: means and quartiles over splits."""
  figure, panels = plots.pyplot().subplots(
    1, len(problems), figsize=(9, 3.6), layout="constrained"
  )
  for axes, (name, tuned) in zip(panels, problems.items(), strict=True):
    for method, found in tuned.items():
      best = np.minimum.accumulate(found.validation, axis=1)
      trials = best.shape[1]
      places = found.cpu_seconds * np.arange(1, trials + 1) / trials
      (line,) = axes.plot(places, best.mean(0), label=method)
      low, high = np.quantile(best, [0.25, 0.75], axis=0)
      color = line.get_color()
      axes.fill_between(places, low, high, color=color, alpha=0.12)
    axes.set(title=name, xlabel="CPU seconds", xscale="log")
    axes.set(ylabel="best validation loss so far")
    axes.grid(alpha=0.3)
  panels[0].legend()
  plots.save(figure, path)
