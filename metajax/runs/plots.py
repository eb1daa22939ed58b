"""Pictures of runs."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax.evaluation import Estimate, estimate, solve
from metajax.tasks.standardized import Channels
from metajax.training.logging import read_jsonl, waiting
from metajax.training.processes import is_main
from metajax.types import (
  Array,
  Episode,
  MetaLearner,
  Params,
  PRNGKey,
  TaskFamily,
)

FEW = 20  # A line with fewer points has large marks.


def pyplot() -> Any:
  """Imports pyplot late, because the import takes half a second."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot


def learning_curve(
  workdir: Path,
  metrics: Mapping[str, str],
  label: str,
  *,
  log: bool = False,
  xlabel: str = "meta-steps",
  folder: Path | None = None,
) -> None:
  """Draws metrics of `metrics.jsonl` against the steps.

  Args:
    workdir: the folder of the training.
    metrics: legend by name of the metric.
    label: the quantity on the vertical axis, with its unit.
    log: if True, the vertical axis is logarithmic, provided that the values are
      positive and span a power of ten.
    xlabel: the name of the horizontal axis.
    folder: gets the picture, `learning_curve.png`; None: `workdir`.
  """
  lines = read_jsonl(workdir / "metrics.jsonl")
  figure, axes = pyplot().subplots(figsize=(6, 3.6), layout="constrained")
  values = []
  for name, legend in metrics.items():
    points = [
      (line["step"], float(line[name])) for line in lines if name in line
    ]
    if points:
      # A single point has no line, so it needs a mark. Few points need large
      # marks to be seen.
      marker = "o" if len(points) < FEW else "."
      axes.plot(*zip(*points, strict=True), marker=marker, label=legend)
      values += [value for _, value in points if math.isfinite(value)]
  axes.set(xlabel=xlabel, ylabel=label)
  axes.set_xlim(left=0)
  axes.grid(alpha=0.3)
  if values:
    axes.legend()
    # Below a span of a power of ten, a logarithmic axis has no round numbers.
    if log and 0 < 10 * min(values) <= max(values):
      axes.set_yscale("log")
  save(figure, (folder or workdir) / "learning_curve.png")


def curves(
  path: Path,
  lines: Mapping[str, Mapping[float, Estimate]],
  xlabel: str,
  ylabel: str,
  *,
  log: str = "",
) -> None:
  """Draws estimates with their intervals against a number.

  Args:
    path: the PNG file.
    lines: by the name in the legend, estimates by their place on the axis.
    xlabel: the name of the horizontal axis.
    ylabel: the name of the vertical axis.
    log: the logarithmic axes, "x", "y" or "xy".
  """
  figure, axes = pyplot().subplots(figsize=(5, 3.6), layout="constrained")
  for name, line in lines.items():
    axes.errorbar(
      list(line),
      [e.mean for e in line.values()],
      [e.ci95 for e in line.values()],
      marker=".",
      capsize=2,
      label=name,
    )
  axes.set(xlabel=xlabel, ylabel=ylabel)
  axes.set(**{f"{axis}scale": "log" for axis in log})
  if "x" not in log and all(
    x == int(x) for line in lines.values() for x in line
  ):
    axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3)
  if len(lines) > 1:
    axes.legend()
  save(figure, path)


def line(places: Iterable[float], values: ArrayLike) -> dict[float, Estimate]:
  """Estimates each column of `[tasks, places]`, as a line for `curves`."""
  return dict(zip(places, map(estimate, np.asarray(values).T), strict=True))


@waiting("drawing tasks")
def image_episodes(
  path: Path,
  learner: MetaLearner,
  params: Params,
  tasks: TaskFamily,
  rng: PRNGKey,
  ways: int,
  *,
  columns: int = 8,
  channels: Channels | None = None,
) -> None:
  """Draws tasks, a class per row: support images, queries with predictions.

  Args:
    path: the PNG file.
    learner: a learner that predicts logits.
    params: the meta-parameters of the learner.
    tasks: few-shot classification of images `[height, width, channels]`.
    rng: fixes the tasks.
    ways: number of classes. At most 10 classes are shown.
    columns: the most images in a row. The row shows as many tasks as fit in.
    channels: the mean and deviation that standardise the images; None: the
      images are not standardised.
  """
  show = _show if channels is None else functools.partial(_restored, channels)
  episode = jax.eval_shape(tasks, rng)
  shots, queries = (len(x.targets) // ways for x in episode)
  shots = min(shots, columns // 2)
  queries = min(queries, columns - shots)
  num_tasks = columns // (shots + queries)
  rows = min(ways, 10)
  figure = pyplot().figure(
    figsize=(0.85 * columns + 0.5, 1.02 * rows + 0.4), layout="constrained"
  )
  parts = figure.subfigures(1, num_tasks, wspace=0.05, squeeze=False)[0]
  draw, solved = _for_once(tasks), _solver(learner)
  for part, key in zip(parts, jax.random.split(rng, num_tasks), strict=True):
    grid = part.subplots(rows, shots + queries, squeeze=False)
    task_key, adapt_key = jax.random.split(key)
    support, query = episode = draw(task_key)
    logits = solved(params, support, query.inputs, adapt_key)
    _draw_episode(grid, shots, episode, np.argmax(logits, axis=-1), show)
  figure.suptitle(
    "black: support, with its label    colour: query, with the prediction",
    fontsize=9,
  )
  save(figure, path)


def _draw_episode(
  grid: Any,
  shots: int,
  episode: Episode,
  predicted: np.ndarray,
  show: Callable,
) -> None:
  support, query = jax.device_get(episode)
  for label, row in enumerate(grid):
    examples = np.flatnonzero(support.targets == label)
    for axes, i in zip(row[:shots], examples, strict=False):
      show(axes, support.inputs[i], f"{label}", "black")
    queries = np.flatnonzero(query.targets == label)
    for axes, i in zip(row[shots:], queries, strict=False):
      color = "tab:green" if predicted[i] == label else "tab:red"
      show(axes, query.inputs[i], f"{predicted[i]}", color)


def _restored(channels: Channels, axes: Any, image: Array, *how: str) -> None:
  _show(axes, np.asarray(channels.restore(image)), *how)


def _show(axes: Any, image: np.ndarray, title: str, color: str) -> None:
  if image.shape[-1] == 1:  # In drawings, ink is 1 and paper is 0.
    axes.imshow(1 - image[..., 0], cmap="gray", vmin=0, vmax=1)
  else:
    axes.imshow(np.clip(image, 0, 1))
  axes.set_title(title, fontsize=8, color=color, pad=2)
  axes.set(xticks=[], yticks=[])
  for spine in axes.spines.values():
    spine.set(color=color, linewidth=1.5)


@waiting("drawing tasks")
def sinusoid_fits(
  path: Path,
  learners: Mapping[str, MetaLearner],
  params: Params,
  tasks: TaskFamily,
  rng: PRNGKey,
  *,
  columns: int = 4,
) -> None:
  """Draws true curves, support points and predictions of several learners.

  Args:
    path: the PNG file.
    learners: learners by their legend. The line of "before" is dashed.
    params: the meta-parameters of all learners.
    tasks: a family of curves.
    rng: fixes the curves shown.
    columns: the number of curves.
  """
  figure, all_axes = pyplot().subplots(
    1, columns, figsize=(3.2 * columns, 3.4), sharey=True, layout="constrained"
  )
  grid = jnp.linspace(-5.0, 5.0, 200)[:, None]
  colors = pyplot().get_cmap("viridis")(np.linspace(0.75, 0.1, len(learners)))
  draw = _for_once(tasks)
  solvers = {label: _solver(learner) for label, learner in learners.items()}
  for index, axes in enumerate(all_axes):
    task_key, adapt_key = jax.random.split(jax.random.fold_in(rng, index))
    support, query = draw(task_key)
    order = np.argsort(query.inputs[:, 0])
    axes.plot(
      query.inputs[order, 0], query.targets[order, 0], "k", lw=1, label="truth"
    )
    axes.plot(support.inputs, support.targets, "r^", label="support")
    for color, (label, solved) in zip(colors, solvers.items(), strict=True):
      axes.plot(
        grid,
        solved(params, support, grid, adapt_key),
        "--" if label == "before" else "-",
        color=color,
        lw=1.4,
        label=label,
      )
    axes.set_xlabel("x")
  all_axes[0].set_ylabel("y")
  handles, labels = all_axes[0].get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc="outside upper center",
    ncols=len(labels),
    frameon=False,
  )
  save(figure, path)


def _solver(learner: MetaLearner) -> Callable[..., Any]:
  """Returns `(params, support, inputs, rng) -> predictions`, compiled."""
  return _for_once(functools.partial(solve, learner))


def _for_once(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles a function that a picture needs a few times.

  On CPUs, compilation takes a third of the time without optimisations.
  """
  on_cpu = jax.default_backend() == "cpu"
  options = {"xla_backend_optimization_level": 0} if on_cpu else None
  return jax.jit(fn, compiler_options=options)


def save(figure: Any, path: Path) -> None:
  """Writes a figure, in the first process only, and frees it.

  A logarithmic axis without a positive number to show becomes linear. The run
  would otherwise end before it writes its results.
  """
  if is_main():
    for axes in figure.axes:
      # The smallest positive numbers, of points that are finite.
      for axis, least in zip("xy", axes.dataLim.minpos, strict=True):
        log = getattr(axes, f"get_{axis}scale")() == "log"
        if log and not math.isfinite(least):
          axes.set(**{f"{axis}scale": "linear"})
    figure.savefig(path, dpi=110)
  pyplot().close(figure)
