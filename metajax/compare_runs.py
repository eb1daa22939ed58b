"""Draws a metric of several runs against meta-steps and against time.

  python -m metajax.compare_runs runs/maml runs/bmg --metric=validation/mse

Reads the `config.json` and `metrics.jsonl` of each folder. Runs that differ
only in their seed are one line: their mean, with a band for the 95% interval of
Student's t for another seed. The folder of a sweep stands for all its runs.

Time is that of the whole run. Old runs have no record of this time. If one of
the runs is old, time is that of the meta-steps, without compilation, validation
and checkpoints. Prints the last value of each line, and its value at the time
when the fastest run ended.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metajax.runs.curves import Curve, curves, find
from metajax.runs.plots import pyplot


def draw(
  found: Sequence[Curve], metric: str, path: Path, *, log: bool = False
) -> None:
  """Draws curves over meta-steps and over seconds, and writes the picture.

  Args:
    found: the curves.
    metric: the name of the vertical axis.
    path: the picture, a PNG file.
    log: whether the vertical axis is logarithmic.
  """
  plt = pyplot()
  figure, panels = plt.subplots(
    1, 2, figsize=(9, 3.6), sharey=True, layout="constrained"
  )
  for curve in found:
    for axes, places in zip(panels, (curve.steps, curve.seconds), strict=True):
      (drawn,) = axes.plot(places, curve.mean, marker=".", label=curve.name)
      if curve.ci95 is not None:
        low, high = curve.mean - curve.ci95, curve.mean + curve.ci95
        color = drawn.get_color()
        axes.fill_between(places, low, high, color=color, alpha=0.2, lw=0)
  panels[0].set(xlabel="meta-steps", ylabel=metric)
  panels[1].set(xlabel="seconds")
  for axes in panels:
    axes.grid(alpha=0.3)
    if log:
      axes.set_yscale("log")
  panels[0].legend()
  figure.savefig(path, dpi=110)
  plt.close(figure)


def table(found: Sequence[Curve], metric: str) -> str:
  """Returns the last value of each curve, and that when the fastest ended."""
  shortest = np.min([curve.seconds[-1] for curve in found])
  width = max(20, *(len(curve.name) for curve in found))
  lines = [f"{'run':{width}} {'steps':>8} {'seconds':>8}  {metric}"]
  for curve in found:
    lines.append(f"{curve.name:{width}} {_shown(curve, -1)}")
    if len(found) > 1 and np.isfinite(shortest):
      when = f"  after {shortest:.0f} s"
      near = int(np.abs(curve.seconds - shortest).argmin())
      lines.append(f"{when:{width}} {_shown(curve, near)}")
  return "\n".join(lines)


def _shown(curve: Curve, at: int) -> str:
  value = f"{curve.steps[at]:8} {curve.seconds[at]:8.1f}  {curve.mean[at]:.4f}"
  return value if curve.ci95 is None else f"{value} +- {curve.ci95[at]:.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command. Bad input is an error of one line."""
  parser = argparse.ArgumentParser(
    prog="python -m metajax.compare_runs",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "folders",
    type=Path,
    nargs="+",
    metavar="FOLDER",
    help="Folder of a run, finished or not, or of a sweep.",
  )
  parser.add_argument(
    "--metric",
    default="validation/accuracy",
    help="A name in metrics.jsonl. [validation/accuracy]",
  )
  parser.add_argument(
    "--out",
    type=Path,
    default=Path("comparison.png"),
    help="The picture, a PNG file. [comparison.png]",
  )
  parser.add_argument(
    "--log", action="store_true", help="Draw the metric's axis logarithmically."
  )
  given = parser.parse_args(arguments)
  try:
    found = curves(find(given.folders, given.metric), given.metric)
    draw(found, given.metric, given.out, log=given.log)
  except (ValueError, OSError) as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  print(table(found, given.metric))
  print(given.out)


if __name__ == "__main__":
  main()
