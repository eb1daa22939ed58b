"""The results of a run: its files, and the table that it prints at the end."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from metajax import recipes, saved
from metajax.evaluation import Estimate
from metajax.results import read_results, write_results
from metajax.runs import board, card, folder, loggers, report_page
from metajax.runs.flags import FLAGS
from metajax.tasks.standardized import Channels
from metajax.training import evaluation_params, task_mesh
from metajax.training.loop import Trained
from metajax.training.processes import is_main


def finish(
  workdir: Path,
  experiment: str,
  protocol: Mapping[str, Any],
  metrics: Mapping[str, Estimate],
  trained: Trained,
  *,
  steps: int | None = None,
  recipe: recipes.Recipe | None = None,
  inputs: jax.ShapeDtypeStruct | None = None,
  inverted: bool = False,
  channels: Channels | None = None,
) -> None:
  """Writes `results.json` and prints the table and the files of the run.

  With `recipe` and `inputs` it also saves the learner for `metajax.load`.

  Args:
    workdir: the folder of the run.
    experiment: the name of the experiment.
    protocol: entries of `results.json` beside those of the common flags.
    metrics: the test results by name.
    trained: the result of the training.
    steps: the number of meta-steps; None: --steps.
    recipe: the description of the learner.
    inputs: the shape and dtype of one example.
    inverted: whether the images have ink as 1.
    channels: the mean and deviation that standardise the images, if any.

  Raises:
    ValueError: if a test result is not finite. All files are written before.
  """
  steps = FLAGS.steps if steps is None else steps
  write_results(
    workdir,
    experiment=experiment,
    protocol={
      "meta_batch": FLAGS.meta_batch,
      "outer_optimizer": "adam",
      "outer_lr": FLAGS.outer_lr,
      "outer_schedule": FLAGS.outer_schedule,
      "eval_seed": FLAGS.eval_seed,
      "devices": task_mesh(FLAGS.meta_batch).size,
      "skipped_steps": trained.skipped_steps,
      **protocol,
    },
    metrics=metrics,
    wall_seconds=trained.wall_seconds,
    compile_seconds=trained.compile_seconds,
    steps=steps,
    seed=FLAGS.seed,
  )
  if recipe is not None and inputs is not None:
    params = evaluation_params(trained.state)
    seeds = FLAGS.num_seeds if "num_seeds" in FLAGS else 1
    saved.save(
      workdir,
      recipe,
      params,
      inputs,
      seeds=seeds,
      inverted=inverted,
      channels=channels,
    )
  publish(workdir, steps, metrics)
  show(
    workdir,
    metrics,
    note=f"{steps} meta-steps in {trained.wall_seconds:.1f} s, of which "
    f"{trained.compile_seconds:.1f} s compiling\n\n",
  )


def finish_whole(
  workdir: Path,
  experiment: str,
  protocol: Mapping[str, Any],
  metrics: Mapping[str, Estimate],
  *,
  seconds: float,
  of: str,
  steps: int | None = None,
) -> None:
  """Does what `finish` does, for a script that trains in one piece.

  Such a script saves no learner.

  Args:
    workdir: the folder of the run.
    experiment: the name of the experiment.
    protocol: entries of `results.json`.
    metrics: the results by name.
    seconds: the wall time, see `wall_clock`.
    of: what the intervals are over, as for `show_finished`.
    steps: the number of steps; None: --steps.

  Raises:
    ValueError: if a result is not finite. All files are written before.
  """
  steps = FLAGS.steps if steps is None else steps
  write_results(
    workdir,
    experiment=experiment,
    protocol=protocol,
    metrics=metrics,
    wall_seconds=seconds,
    compile_seconds=None,
    steps=steps,
    seed=FLAGS.seed,
  )
  publish(workdir, steps, metrics)
  show(workdir, metrics, of)


def publish(workdir: Path, steps: int, metrics: Mapping[str, Estimate]) -> None:
  """Writes the card and the page, and sends the results to the loggers.

  They show the present content of the folder, which must have a `results.json`.
  """
  if not is_main():
    return
  card.write(workdir, folder.command())
  report_page.write(workdir, folder.command())
  flags = json.loads((workdir / "config.json").read_text())["flags"]
  scores = {f"test/{name}": value.mean for name, value in metrics.items()}
  pictures = sorted(workdir.glob("*.png"))
  board.finish(workdir / "tensorboard", steps, flags, scores, pictures)
  loggers.finish(workdir, steps, scores, pictures)


def show_finished(
  workdir: Path, of: str = "tasks", *, saves_learner: bool = True
) -> bool:
  """Prints the results of a run that has ended. Returns False if it has not.

  Args:
    workdir: the folder of the run.
    of: what the intervals are over.
    saves_learner: if True, a run without a whole learner has not ended.
  """
  found = read_results(workdir)
  if found is None or (saves_learner and not saved.is_whole(workdir)):
    return False
  if is_main():
    try:
      report_page.write(workdir, folder.command())
    except PermissionError as error:  # Of somebody else's run.
      logging.warning("%s is not written anew: %s.", report_page.NAME, error)
    note = "finished before; delete results.json to evaluate again\n\n"
    show(workdir, found["metrics"], of, note=note)
  return True


def show(
  workdir: Path,
  metrics: Mapping[str, Estimate],
  of: str = "tasks",
  *,
  note: str = "",
) -> None:
  """Prints the table and the files of the run.

  Raises:
    ValueError: if a mean is not finite.
  """
  width = max(map(len, metrics))
  # With several trainings, the interval is over trainings, not over tasks.
  seeds = any(value.of_seeds for value in metrics.values())
  of = "seeds" if seeds else of
  print(f"\n{'metric':{width}}      mean +- 95% interval {of:>7}")
  for name, value in metrics.items():
    count = len(value.of_seeds) if seeds else value.num_tasks
    print(f"{name:{width}}  {value.mean:8.4f} +- {value.ci95:.4f}{count:15d}")
  print(f"\n{note}", end="")
  names = ("*.png", "results.json", saved.META_PARAMS, report_page.NAME)
  for path in [path for name in names for path in sorted(workdir.glob(name))]:
    print(path)
  broken = [
    f"{name} is {value.mean}" + _of_seed(value)
    for name, value in metrics.items()
    if not math.isfinite(value.mean)
  ]
  if broken:
    raise ValueError(
      f"{'; '.join(broken)}: what was trained diverges there. Give smaller "
      "steps or another seed; results.json has the other numbers."
    )


def _of_seed(value: Estimate) -> str:
  """Names the seeds of the trainings that are not finite."""
  bad = [
    str(FLAGS.seed + i)
    for i, mean in enumerate(value.of_seeds)
    if not math.isfinite(mean)
  ]
  return f" by --seed={', '.join(bad)}" if bad else ""
