"""Line charts as SVG elements. The style sheet of the page has the colours."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from metajax.training.logging import read_jsonl

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 54, 24, 8, 26
COLORS = 8  # The page defines the classes c0 to c7.
MARKED = 40  # A line with fewer points has a mark at each point.
MOST_POINTS = 500  # A longer line shows every second or third point only.
# A metric with one of these parts in its name gets a logarithmic axis.
LOGARITHMIC = ("loss", "mse", "error", "norm")
Line = Sequence[tuple[float, float]]


def of_run(workdir: Path) -> str:
  """Draws each metric of all trainings of a run, with its validation."""
  # Lines by metric, then by training and split.
  metrics: dict[str, dict[tuple[str, str], Line]] = {}
  for path in sorted(workdir.rglob("metrics.jsonl")):
    part = path.parent.relative_to(workdir).as_posix()
    lines = read_jsonl(path)
    for name in dict.fromkeys(name for line in lines for name in line):
      if name in ("step", "wall_seconds"):
        continue
      points = [(x["step"], float(x[name])) for x in lines if name in x]
      every = -(-len(points) // MOST_POINTS)
      base = name.removeprefix("validation/")
      split = "training" if base == name else "validation"
      metrics.setdefault(base, {})[part, split] = points[::-every]
  figures = []
  for name, curves in metrics.items():
    splits = {split for _, split in curves}
    legends = {
      ", ".join([part] * (part != ".") + [split] * (len(splits) > 1)): curve
      for (part, split), curve in curves.items()
    }
    drawn = chart(legends, log=any(part in name for part in LOGARITHMIC))
    title = name.replace("_", " ") + ", validation" * (splits == {"validation"})
    if drawn:
      figures.append(
        f"<figure><figcaption>{html.escape(title)}</figcaption>{drawn}</figure>"
      )
  return "".join(figures)


def chart(lines: Mapping[str, Line], *, log: bool = False) -> str:
  """Draws lines over meta-steps. Values that are not finite are left out.

  Args:
    lines: points `(step, value)` by the name in the legend.
    log: if True, the vertical axis is logarithmic, provided that the values are
      positive and span a power of ten.

  Returns:
    The SVG element, and a legend if there are several lines. Empty if there
    are no points.
  """
  finite = {
    name: [(x, y) for x, y in line if abs(y) < 1e300]
    for name, line in lines.items()
  }
  finite = {name: line for name, line in finite.items() if line}
  values = [y for line in finite.values() for _, y in line]
  if not values:
    return ""
  log = log and 0 < 10 * min(values) <= max(values)
  scaled = [math.log10(y) for y in values] if log else values
  low, high = _widened(min(scaled), max(scaled))
  end = max(x for line in finite.values() for x, _ in line) or 1

  def across(x: float) -> float:
    return LEFT + x / end * (WIDTH - LEFT - RIGHT)

  def down(y: float) -> float:
    part = ((math.log10(y) if log else y) - low) / (high - low)
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

  parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
  for y in _log_ticks(low, high) if log else _ticks(low, high):
    parts.append(
      f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
      f'y1="{down(y):.1f}" y2="{down(y):.1f}"/>'
      f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">'
      f"{y:.6g}</text>"
    )
  parts += [
    f'<text x="{across(x):.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
    f"{x:.6g}</text>"
    for x in _ticks(0, end)
  ]
  for i, line in enumerate(finite.values()):
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line)
    parts.append(f'<polyline class="c{i % COLORS}" points="{path}"/>')
    if len(line) < MARKED:
      parts += [
        f'<circle class="c{i % COLORS}" r="3" cx="{across(x):.1f}" '
        f'cy="{down(y):.1f}"/>'
        for x, y in line
      ]
  parts.append("</svg>")
  if len(finite) > 1:
    parts += ['<p class="legend">'] + [
      f'<span class="c{i % COLORS}">{html.escape(name)}</span>'
      for i, name in enumerate(finite)
    ]
    parts.append("</p>")
  return "".join(parts)


def _widened(low: float, high: float) -> tuple[float, float]:
  margin = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
  return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
  """Returns three to seven round numbers."""
  rough = (high - low) / 6
  power = 10 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
  first, last = math.ceil(low / step), math.floor(high / step)
  return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Returns powers of ten, and multiples of them if there are few powers."""
  powers = range(math.floor(low), math.ceil(high) + 1)
  every = math.ceil((high - low) / 6)
  digits = (1, 2, 5) if high - low < 2 else (1,)
  found = [d * 10.0**p for p in powers[::every] for d in digits]
  return [y for y in found if low <= math.log10(y) <= high]
