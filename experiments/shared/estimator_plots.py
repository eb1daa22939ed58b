"""Draws the bias, the deviation and the time of estimators of a gradient."""

from collections.abc import Mapping
from pathlib import Path

from metajax.runs import plots

STYLES = ["-", "--", "-", "--", "-", "-"]


def draw(
  path: Path, table: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> None:
  """Draws three panels against the number of steps.

  Args:
    path: the PNG file.
    table: by estimator and number of steps, the "ratio" of the mean estimate to
      the exact gradient, its standard "error", the "deviation" between loops in
      units of the gradient, and the "cpu_seconds" of one loop.
  """
  figure, (ratio, deviation, seconds) = plots.pyplot().subplots(
    1, 3, figsize=(11, 3.8), layout="constrained"
  )
  for i, (name, rows) in enumerate(table.items()):
    style = {
      "marker": ".",
      "linestyle": STYLES[i % len(STYLES)],
      "color": f"C{i}",
      "label": name.replace("_", " "),
    }
    # Side by side, because several of them are 1.
    places = [steps * 1.08 ** (i - len(table) / 2) for steps in rows]
    of = lambda key, rows=rows: [row[key] for row in rows.values()]  # noqa: E731
    errors = [1.96 * error for error in of("error")]
    ratio.errorbar(places, of("ratio"), errors, capsize=2, **style)
    # Rounding alone is no deviation.
    if max(of("deviation")) > 1e-5:
      deviation.plot(list(rows), of("deviation"), **style)
    seconds.plot(list(rows), of("cpu_seconds"), **style)
  ratio.axhline(1, color="black", linewidth=0.5)
  ratio.set(ylabel="mean estimate / exact gradient")
  deviation.set(ylabel="deviation of a loop / exact gradient", yscale="log")
  seconds.set(ylabel="CPU seconds for a loop", yscale="log")
  for axes in (ratio, deviation, seconds):
    axes.set(xlabel="steps in a loop", xscale="log")
    axes.grid(alpha=0.3)
  handles, labels = ratio.get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside lower center", ncols=3, frameon=False
  )
  plots.save(figure, path)
