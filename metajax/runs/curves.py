"""Reads metrics of runs as curves, one for runs that differ in their seed."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from metajax.training.logging import read_jsonl


class Run(NamedTuple):
  """The records of a run: its name, its flags, its lines of metrics."""

  name: str
  config: dict[str, Any]
  records: list[dict[str, Any]]


class Curve(NamedTuple):
  """A metric of one run, or its mean over runs of different seeds.

  Attributes:
    name: the name in the legend.
    steps: meta-steps, `[n]`.
    seconds: the time of these steps, `[n]`.
    mean: the mean of the metric, `[n]`.
    ci95: half the width of the 95% interval of Student's t for another seed,
      `[n]`; None for a single run.
  """

  name: str
  steps: np.ndarray
  seconds: np.ndarray
  mean: np.ndarray
  ci95: np.ndarray | None


def find(folders: Sequence[Path], metric: str) -> list[Run]:
  """Reads runs, and those runs of sweeps that recorded the metric.

  Args:
    folders: the folders of runs and of sweeps.
    metric: a name in `metrics.jsonl`.

  Raises:
    ValueError: if a folder is no run, or has not recorded the metric, or if two
      have the same name.
  """
  if len({folder.name for folder in folders}) < len(folders):
    raise ValueError(
      f"{', '.join(map(str, folders))}: two of the folders have the same name, "
      "by which runs are told apart: rename one."
    )
  runs: list[Run] = []
  for folder in folders:
    if not (folder / "sweep.json").exists():
      run = read(folder, folder.name)
      if not _recorded(run, metric):
        raise ValueError(
          f"--metric={metric}: {folder} has none recorded; {_known([run])}"
        )
      runs.append(run)
      continue
    prefix = f"{folder.name}/" if len(folders) > 1 else ""
    points = [path.parent for path in sorted(folder.glob("*/metrics.jsonl"))]
    found = [read(point, prefix + point.name) for point in points]
    there = {path.parent for path in folder.glob("*/config.json")}
    without = [run.name for run in found if not _recorded(run, metric)]
    without += sorted(prefix + path.name for path in there - {*points})
    if without:
      print(
        f"left out, nothing recorded: {', '.join(without)}", file=sys.stderr
      )
    recorded = [run for run in found if _recorded(run, metric)]
    if not recorded:
      raise ValueError(
        f"--metric={metric}: no run of {folder} has it recorded; "
        f"{_known(found)}"
      )
    runs += recorded
  return runs


def read(folder: Path, name: str) -> Run:
  """Reads the records of a run.

  Raises:
    ValueError: if the folder is no run, or its files are damaged.
  """
  try:
    config = json.loads((folder / "config.json").read_text())["flags"]
    return Run(name, dict(config), read_jsonl(folder / "metrics.jsonl"))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{folder} is no folder of a run ({error}): give one with config.json "
      "and metrics.jsonl."
    ) from error


def _recorded(run: Run, metric: str) -> bool:
  return any(metric in record for record in run.records)


def _known(runs: Sequence[Run]) -> str:
  names = {name for run in runs for record in run.records for name in record}
  if not names:
    return "its metrics.jsonl has no whole line yet."
  return f"give one of {', '.join(sorted(names - {'step'}))}."


def curves(runs: Sequence[Run], metric: str) -> list[Curve]:
  """Returns a curve for each group of runs that differ in their seed only.

  Args:
    runs: runs that recorded the metric.
    metric: a name in `metrics.jsonl`.

  Raises:
    ValueError: if runs of a group recorded the metric at no step in common.
  """
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
    found += [_curve(part, metric, wall) for part in parts]
  names = [curve.name for curve in found]
  return [
    curve
    if names.count(curve.name) == 1
    else curve._replace(name=f"{curve.name} {i}")
    for i, curve in enumerate(found, 1)
  ]


def _curve(runs: Sequence[Run], metric: str, wall: bool) -> Curve:
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
  times = np.mean([_seconds(run, steps, wall) for run in runs], axis=0)
  if len(runs) == 1:
    return Curve(runs[0].name, steps, times, table[0], None)
  t = scipy.special.stdtrit(len(runs) - 1, 0.975)
  ci95 = t * table.std(0, ddof=1) / np.sqrt(len(runs))
  name, seeds = _common([run.name for run in runs]), f"{len(runs)} seeds"
  name = f"{name} ({seeds})" if name else seeds
  return Curve(name, steps, times, table.mean(0), ci95)


def _common(names: Sequence[str]) -> str:
  """Returns the beginning that names have in common, without the seed.

  "inner_lr=0.1,seed=0" and "inner_lr=0.1,seed=1" have "inner_lr=0.1" in common.
  "run_1" and "run_10" have "run", since words and numbers are not cut.
  """
  seed = r"(^|,)seed=\d+(?=,|$)"
  own = [re.sub(seed, "", name).removeprefix(",") for name in names]
  parts = [re.findall(r"[\d.]+|[^\W\d_]+|.", name) for name in own]
  begin = "".join(os.path.commonprefix(parts))
  return re.sub(r"[,\-_ /]*((?<![a-zA-Z0-9])seed)?[=,\-_ /]*$", "", begin)


def _seconds(run: Run, steps: np.ndarray, wall: bool) -> np.ndarray:
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
  if not rated or "meta_batch" not in run.config:
    return np.full(steps.shape, np.nan)
  places = np.array([0] + [r["step"] for r in rated])
  rates = np.array([r["tasks_per_second"] for r in rated])
  # The rate counts the tasks of all seeds that train together.
  tasks = run.config["meta_batch"] * run.config.get("num_seeds", 1)
  passed = np.cumsum(np.diff(places) * tasks / rates)
  return np.interp(steps, places, [0, *passed])
