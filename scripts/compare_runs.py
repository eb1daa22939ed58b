"""Draws a metric of several runs against meta-steps and against time.

  python scripts/compare_runs.py --runs=runs/maml,runs/bmg \
      --metric=validation/accuracy --out=comparison.png

The script reads the `config.json` and `metrics.jsonl` of each workdir. Runs
that differ only in their seed are one line: their mean, with a band for the 95%
interval of Student's t for another seed. A folder of --sweep stands for all its
runs.

Time is that of the whole run. Old runs have no record of this time. If one of
the runs is old, time is that of the meta-steps, without compilation, validation
and checkpoints. The script prints the last value of each line, and its value at
the time when the fastest run ended.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import scipy.special
from absl import app, flags

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list(
  "runs", None, "Workdirs of runs, finished or not, and of sweeps."
)
flags.DEFINE_string("metric", "validation/accuracy", "A name in metrics.jsonl.")
flags.DEFINE_string("out", "comparison.png", "The picture, a PNG file.")
flags.DEFINE_bool("log", False, "Whether the metric's axis is logarithmic.")
flags.mark_flag_as_required("runs")


class Run(NamedTuple):
  """The records of a run: its name, its flags, its lines of metrics."""

  name: str
  config: dict[str, Any]
  records: list[dict[str, Any]]


class Line(NamedTuple):
  """A line of the picture.

  Attributes:
    name: the name in the legend.
    steps: meta-steps, `[n]`.
    seconds: the time of these steps, `[n]`.
    mean: the mean of the metric, `[n]`.
    ci95: half the width of the band, `[n]`; None for a single run.
  """

  name: str
  steps: np.ndarray
  seconds: np.ndarray
  mean: np.ndarray
  ci95: np.ndarray | None

  def shown(self, at: int) -> str:
    value = f"{self.steps[at]:8} {self.seconds[at]:8.1f}  {self.mean[at]:.4f}"
    return value if self.ci95 is None else f"{value} +- {self.ci95[at]:.4f}"


def find(names: Sequence[str], metric: str) -> list[Run]:
  """Reads runs, and the runs of sweeps that recorded the metric."""
  if len({Path(name).name for name in names}) < len(names):
    raise ValueError(
      "--runs: two of the folders have the same name, by which runs are told "
      "apart: rename one."
    )
  runs: list[Run] = []
  for folder in map(Path, names):
    if not (folder / "sweep.json").exists():
      run = read(folder, folder.name)
      if not _recorded(run, metric):
        raise ValueError(f"--metric={metric}: {folder} has none recorded.")
      runs.append(run)
      continue
    prefix = f"{folder.name}/" if len(names) > 1 else ""
    points = [path.parent for path in sorted(folder.glob("*/metrics.jsonl"))]
    found = [read(point, prefix + point.name) for point in points]
    there = {path.parent for path in folder.glob("*/config.json")}
    without = [run.name for run in found if not _recorded(run, metric)]
    without += sorted(prefix + path.name for path in there - {*points})
    if without:
      print(
        f"left out, nothing recorded: {', '.join(without)}", file=sys.stderr
      )
    found = [run for run in found if _recorded(run, metric)]
    if not found:
      raise ValueError(
        f"--metric={metric}: no run of {folder} has it recorded."
      )
    runs += found
  return runs


def read(folder: Path, name: str) -> Run:
  try:
    config = json.loads((folder / "config.json").read_text())["flags"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return Run(name, config, [json.loads(line) for line in lines])
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(f"--runs: {folder} is no workdir ({error}).") from error


def _recorded(run: Run, metric: str) -> bool:
  return any(metric in record for record in run.records)


def seconds(run: Run, steps: np.ndarray, wall: bool) -> np.ndarray:
  """Returns the time of meta-steps, interpolated between recorded times.

  Args:
    run: the run.
    steps: meta-steps, `[n]`.
    wall: whether to use the time of the whole run, not that of the meta-steps.
  """
  if wall:
    known = [r for r in run.records if "wall_seconds" in r]
    times = [float(r["wall_seconds"]) for r in known]
    return np.interp(steps, [r["step"] for r in known], times)
  # Only lines by --log_every have a rate, that since the last such line.
  rated = [r for r in run.records if "tasks_per_second" in r]
  places = np.array([0] + [r["step"] for r in rated])
  rates = np.array([r["tasks_per_second"] for r in rated])
  passed = np.cumsum(np.diff(places) * run.config["meta_batch"] / rates)
  return np.interp(steps, places, [0, *passed])


def lines(runs: Sequence[Run], metric: str) -> list[Line]:
  """Returns a line for each group of runs that differ in their seed only."""
  wall = all(any("wall_seconds" in r for r in run.records) for run in runs)
  groups: dict[str, list[Run]] = {}
  for run in runs:
    others = {k: v for k, v in run.config.items() if k != "seed"}
    groups.setdefault(json.dumps(others, sort_keys=True), []).append(run)
  found = []
  for group in groups.values():
    seeds = {run.config.get("seed") for run in group}
    # If a seed occurs twice, these are not runs of different seeds.
    parts = [group] if len(seeds) == len(group) else [[run] for run in group]
    found += [_line(part, metric, wall) for part in parts]
  names = [line.name for line in found]
  return [
    line
    if names.count(line.name) == 1
    else line._replace(name=f"{line.name} {i}")
    for i, line in enumerate(found, 1)
  ]


def _line(runs: Sequence[Run], metric: str, wall: bool) -> Line:
  values = [
    {r["step"]: float(r[metric]) for r in run.records if metric in r}
    for run in runs
  ]
  steps = np.array(sorted(set.intersection(*map(set, values))), int)
  if not steps.size:
    names = ", ".join(run.name for run in runs)
    raise ValueError(
      f"--metric={metric}: {names} have it at no step in common."
    )
  table = np.array([[value[step] for step in steps] for value in values])
  times = np.mean([seconds(run, steps, wall) for run in runs], axis=0)
  if len(runs) == 1:
    return Line(runs[0].name, steps, times, table[0], None)
  t = scipy.special.stdtrit(len(runs) - 1, 0.975)
  ci95 = t * table.std(0, ddof=1) / np.sqrt(len(runs))
  name = os.path.commonprefix([run.name for run in runs])
  # "inner_lr=0.1,seed=0" and "inner_lr=0.1,seed=1" become "inner_lr=0.1".
  name = name.removesuffix("=").removesuffix("seed").rstrip(",-_ /")
  name = f"{name or runs[0].name} ({len(runs)} seeds)"
  return Line(name, steps, times, table.mean(0), ci95)


def draw(found: Sequence[Line], path: str) -> None:
  figure, panels = plt.subplots(
    1, 2, figsize=(9, 3.6), sharey=True, layout="constrained"
  )
  for line in found:
    for axes, places in zip(panels, (line.steps, line.seconds), strict=True):
      (drawn,) = axes.plot(places, line.mean, marker=".", label=line.name)
      if line.ci95 is not None:
        low, high = line.mean - line.ci95, line.mean + line.ci95
        color = drawn.get_color()
        axes.fill_between(places, low, high, color=color, alpha=0.2, lw=0)
  panels[0].set(xlabel="meta-steps", ylabel=FLAGS.metric)
  panels[1].set(xlabel="seconds")
  for axes in panels:
    axes.grid(alpha=0.3)
    if FLAGS.log:
      axes.set_yscale("log")
  panels[0].legend()
  figure.savefig(path, dpi=110)


def main(argv: list[str]) -> None:
  del argv
  try:
    found = lines(find(FLAGS.runs, FLAGS.metric), FLAGS.metric)
  except ValueError as error:
    sys.exit(f"error: {error}")
  shortest = min(line.seconds[-1] for line in found)
  width = max(20, *(len(line.name) for line in found))
  print(f"{'run':{width}} {'steps':>8} {'seconds':>8}  {FLAGS.metric}")
  for line in found:
    print(f"{line.name:{width}} {line.shown(-1)}")
    if len(found) > 1:
      when = f"  after {shortest:.0f} s"
      near = int(np.abs(line.seconds - shortest).argmin())
      print(f"{when:{width}} {line.shown(near)}")
  draw(found, FLAGS.out)
  print(FLAGS.out)


if __name__ == "__main__":
  app.run(main)
