"""The results of a sweep: a table of its runs, and a picture."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metajax.evaluation import Estimate, estimate_over_seeds
from metajax.files import replaced
from metajax.results import read_results
from metajax.runs import plots
from metajax.runs.grid import shown

NOT_RUN = "not run"
SEED, ALL = "seed", "all"
PANELS, COLUMNS = 12, 3


class Row(NamedTuple):
  """A run of a sweep, or several runs that differ in their seed only.

  Attributes:
    values: the values of the swept flags, as text.
    metrics: the estimates of `results.json` by name; for several runs, the
      estimates over the seeds.
    status: "done", "failed" or "not run"; for several runs, the number that are
      done.
    wall_seconds: the seconds of the run, or of all runs together.
    folder: the name of the run's folder; empty for several runs.
    error: the last line of a run that failed.
  """

  values: dict[str, str]
  metrics: Mapping[str, Estimate]
  status: str
  wall_seconds: float
  folder: str
  error: str


def read(
  folder: Path, values: Mapping[str, Any], status: str, error: str
) -> Row:
  """Reads the row of a run, whether it has ended or not."""
  found: dict[str, Any] = {}
  try:
    # If the status is "not run", the results belong to another run.
    found = (status != NOT_RUN and read_results(folder)) or {}
  except ValueError as damage:
    status, error = "failed", str(damage)
  return Row(
    {name: shown(value) for name, value in values.items()},
    found.get("metrics", {}),
    status,
    found.get("wall_seconds", math.nan),
    folder.name,
    error,
  )


def over_seeds(rows: Sequence[Row]) -> list[Row]:
  """Returns a row of means for each group of rows that differ in the seed only.

  The means are over the runs that are done.
  """
  groups: dict[tuple[str, ...], list[Row]] = {}
  for row in rows:
    others = tuple(v for k, v in row.values.items() if k != SEED)
    groups.setdefault(others, []).append(row)
  means = []
  for group in groups.values():
    done = [row for row in group if row.status == "done"]
    metrics = {
      name: estimate_over_seeds(
        [row.metrics[name].mean for row in done],
        sum(row.metrics[name].num_tasks for row in done),
      )
      for name in _names(done)
      if all(name in row.metrics for row in done)
    }
    seconds = sum(row.wall_seconds for row in done) if done else math.nan
    values = {**group[0].values, SEED: ALL}
    status = f"{len(done)} of {len(group)} done"
    means.append(Row(values, metrics, status, seconds, "", ""))
  return means


def write(workdir: Path, rows: Sequence[Row]) -> str:
  """Writes `sweep.csv`, `sweep.md` and `sweep.png`.

  Returns:
    The table in Markdown, and the paths of the files.
  """
  swept = list(rows[0].values)
  seeds = {row.values.get(SEED) for row in rows}
  means = over_seeds(rows) if len(seeds) > 1 else []
  _replace(workdir / "sweep.csv", _csv([*rows, *means], swept))
  tables = [_markdown(rows, swept)]
  if means:
    tables.insert(0, _markdown(means, swept))
  text = "\n".join(tables)
  _replace(workdir / "sweep.md", text)
  drawn = means if means and len(swept) > 1 else rows
  if any(row.metrics for row in drawn):
    draw(workdir / "sweep.png", drawn)
  files = sorted(map(str, workdir.glob("sweep.*")))
  return "\n".join([text, *files])


def _names(rows: Iterable[Row]) -> list[str]:
  return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _replace(path: Path, text: str) -> None:
  with replaced(path) as file:
    file.write_text(text)


def _csv(rows: Sequence[Row], swept: Sequence[str]) -> str:
  names = _names(rows)
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  intervals = [x for name in names for x in (name, f"{name}_ci95")]
  ends = ["status", "wall_seconds", "folder", "error"]
  writer.writerow([*swept, *intervals, *ends])
  for row in rows:
    numbers: list[float | str] = []
    for name in names:
      found = row.metrics.get(name)
      numbers += [found.mean, found.ci95] if found else ["", ""]
    seconds = "" if math.isnan(row.wall_seconds) else row.wall_seconds
    writer.writerow(
      [*row.values.values(), *numbers]
      + [row.status, seconds, row.folder, row.error]
    )
  return file.getvalue()


def _markdown(rows: Sequence[Row], swept: Sequence[str]) -> str:
  """Returns a table in Markdown, with aligned columns."""
  names = _names(rows)
  of_seeds = any(not row.folder for row in rows)
  shown_flags = [name for name in swept if not (of_seeds and name == SEED)]
  ends = ["wall time", "seeds"] if of_seeds else ["wall time", "run", "folder"]
  head = [*shown_flags, *names, *ends]
  table = [head]
  for row in rows:
    cells = [row.values[name] for name in shown_flags]
    cells += [_interval(row.metrics.get(name)) for name in names]
    seconds = row.wall_seconds
    cells.append("" if math.isnan(seconds) else f"{seconds:.1f} s")
    cells += [row.status] if of_seeds else [row.status, f"`{row.folder}`"]
    table.append(cells)
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = [
    "| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in table
  ]
  lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  errors = [f"- `{row.folder}`: {row.error}" for row in rows if row.error]
  return "\n".join([*lines, "", *errors]) + "\n" * (len(errors) > 0)


def _interval(value: Estimate | None) -> str:
  if value is None:
    return ""
  if math.isnan(value.ci95):
    return f"{value.mean:.4f}"
  return f"{value.mean:.4f} +- {value.ci95:.4f}"


def draw(path: Path, rows: Sequence[Row]) -> None:
  """Draws each metric against the first flag.

  Each combination of the other flags is a line. Intervals are bands.

  Args:
    path: the PNG file.
    rows: runs, or means over seeds.
  """
  flags = [k for k, v in rows[0].values.items() if (k, v) != (SEED, ALL)]
  first = next((name for name in flags if name != SEED), SEED)
  names = _names(rows)[:PANELS]
  columns = min(len(names), COLUMNS)
  figure, grid = plots.pyplot().subplots(
    -(-len(names) // columns),
    columns,
    figsize=(4 * columns, 3.2 * -(-len(names) // columns)),
    layout="constrained",
    squeeze=False,
  )
  lines: dict[str, list[Row]] = {}
  for row in rows:
    others = [f"{k}={row.values[k]}" for k in flags if k != first]
    lines.setdefault(", ".join(others), []).append(row)
  places, names_of_places, log = _places([row.values[first] for row in rows])
  for name, axes in zip(names, grid.flat, strict=False):
    for legend, line in lines.items():
      there = [row for row in line if name in row.metrics]
      there.sort(key=lambda row: places[row.values[first]])
      x = [places[row.values[first]] for row in there]
      mean = [row.metrics[name].mean for row in there]
      ci95 = [row.metrics[name].ci95 for row in there]
      (drawn,) = axes.plot(x, mean, marker=".", label=legend)
      low, high = (
        zip(
          *((m - c, m + c) for m, c in zip(mean, ci95, strict=True)),
          strict=True,
        )
        if there
        else ((), ())
      )
      axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2, lw=0)
    axes.set(xlabel=first, ylabel=name)
    if log:
      axes.set_xscale("log")
    axes.set_xticks(list(places.values()), names_of_places)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
  for axes in list(grid.flat)[len(names) :]:
    axes.set_axis_off()
  if len(lines) > 1:
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
      handles, labels, loc="outside upper center", ncols=3, frameon=False
    )
  plots.save(figure, path)


def _places(values: Sequence[str]) -> tuple[dict[str, float], list[str], bool]:
  """Returns places by value, their names, and if the axis is logarithmic."""
  distinct = list(dict.fromkeys(values))
  try:
    numbers = [float(value) for value in distinct]
  except ValueError:
    return {v: float(i) for i, v in enumerate(distinct)}, distinct, False
  log = min(numbers) > 0 and max(numbers) / min(numbers) >= 5
  return dict(zip(distinct, numbers, strict=True)), distinct, log
