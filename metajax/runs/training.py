"""What training scripts do between their learner and their results."""

import concurrent.futures
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from metajax import saved
from metajax.evaluation import Estimate, estimate, evaluator
from metajax.results import open_workdir, read_results, write_results
from metajax.runs.flags import FLAGS
from metajax.training import (
  Trainer,
  evaluation_params,
  meta_trainer,
  task_mesh,
)
from metajax.training.logging import tell
from metajax.training.loop import Schedule, Trained, fit
from metajax.training.mesh import usable_cores
from metajax.training.processes import is_main, main_alone
from metajax.types import LossFn, MetaLearner, Params, PRNGKey, TaskFamily

# Flags that say where a run is, not what it is.
NOT_CONFIG = (
  "workdir",
  "data_dir",
  "debug",
  "preset",
  "compile_cache",
  "profile",
  "must_save",
  "stall_seconds",
  "skip_non_finite",
  "replay_step",
  "coordinator",
  "num_processes",
  "process_id",
)


# What may be another in a run that has ended: it is evaluated again.
EVALUATION = (
  "eval_tasks",
  "eval_seed",
  "eval_shots",
  "eval_query_shots",
  "eval_inner_steps",
)


def start(
  experiment: str, data: str | None = None, *, goes_on: bool = False
) -> Path:
  """Makes or reopens the folder of the run that the flags describe.

  Args:
    experiment: its name.
    data: what tells the data apart from others in the place of --data_dir.
    goes_on: one that has ended may be trained further, where its schedule
      allows that, or evaluated otherwise.
  """
  key_flags = [
    flag
    for flag in FLAGS.get_key_flags_for_module(sys.argv[0])
    if flag.name not in NOT_CONFIG
  ]
  config = {flag.name: flag.value for flag in key_flags}
  if data is not None:
    config["data_dir"] = data
  # By what is not the default, so that a flag that is added later, and not
  # given, leaves a run where it was.
  given = {
    flag.name: flag.value for flag in key_flags if flag.value != flag.default
  }
  if data is not None:
    given["data_dir"] = data
  digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
  default = Path("runs") / f"{experiment}-{digest.hexdigest()[:8]}"
  workdir = Path(FLAGS.workdir or default)
  config["experiment"] = experiment
  # What a run from before a flag existed does not say is the flag's default.
  defaults = {flag.name: flag.default for flag in key_flags}

  def may_change(name: str, old: Any, new: Any) -> bool:
    if not goes_on:
      return False
    if name in EVALUATION:
      return (workdir / "results.json").exists()
    return name == "steps" and new > old and _goes_on(workdir, old)

  main_alone(lambda: open_workdir(workdir, config, defaults, may_change))
  tell(f"{experiment}: run in {workdir}")
  return workdir


def _goes_on(workdir: Path, steps: int) -> bool:
  """Raises a `ValueError` where a training cannot be longer than it was."""
  # Scripts whose runs go on have its flags; others must not get them.
  from metajax.runs import learner_options

  reason = ""
  if FLAGS.outer_schedule != "constant":
    reason = f"--outer_schedule={FLAGS.outer_schedule} ends at step size 0"
  elif learner_options.own(FLAGS.learner, steps) != (
    learner_options.own(FLAGS.learner)
  ):
    reason = f"--learner={FLAGS.learner} changes at parts of the whole training"
  if reason:
    raise ValueError(
      f"--steps={FLAGS.steps}: the run in {workdir} is of {steps} steps, and "
      f"{reason}, so it cannot go on. A new --workdir trains anew."
    )
  return True


def show_finished(workdir: Path) -> bool:
  """Prints what came of a run that has ended; False if it has not."""
  found = read_results(workdir)
  if found is None or not (workdir / saved.LEARNER).exists():
    return False
  if is_main():
    note = "finished before; delete results.json to evaluate again\n\n"
    show(workdir, found["metrics"], note=note)
  return True


def outer_optimizer(
  schedule: str,
  updates_per_step: int = 1,
  step_size: float | None = None,
  *,
  rule: str = "adam",
) -> optax.GradientTransformation:
  """Adam or SGD, with the given step size, or --outer_lr, at its beginning."""
  step_size = FLAGS.outer_lr if step_size is None else step_size
  updates = FLAGS.steps * updates_per_step
  rate: optax.ScalarOrSchedule = step_size
  if schedule == "cosine":
    rate = optax.cosine_decay_schedule(step_size, updates)
  elif schedule == "linear":
    rate = optax.linear_schedule(step_size, 0.0, updates)
  return {"adam": optax.adam, "sgd": optax.sgd}[rule](rate)


def schedule() -> Schedule:
  """How long to train, and what to do how often, by the flags."""
  return Schedule(
    FLAGS.steps, FLAGS.log_every, FLAGS.eval_every, FLAGS.checkpoint_every
  )


def trainer(
  learner: MetaLearner,
  tasks: TaskFamily,
  *,
  seed: int = 0,
  rule: str = "adam",
  skip_non_finite: bool = False,
  rng: PRNGKey | None = None,
) -> Trainer:
  """Builds the trainer that the flags describe, `seed` beyond their seed.

  `rng`, if given, is the key of the tasks in place of that of the seed.
  """
  return meta_trainer(
    learner,
    outer_optimizer(FLAGS.outer_schedule, rule=rule),
    tasks,
    meta_batch=FLAGS.meta_batch,
    rng=task_key(seed) if rng is None else rng,
    task_chunk=FLAGS.task_chunk or None,
    skip_non_finite=skip_non_finite,
  )


def train(
  trainer: Trainer,
  workdir: Path,
  validate: Callable[[Params], dict[str, float]],
  *,
  rng: PRNGKey | None = None,
) -> Trained:
  """Meta-trains by the flags, from the newest checkpoint in the workdir.

  `rng`, if given, is the key of the initial parameters, or those of seeds.
  """
  rng = init_key() if rng is None else rng
  used, there = task_mesh(FLAGS.meta_batch).size, jax.device_count()
  if used < there:
    tell(
      f"{used} of {there} devices are used: --meta_batch={FLAGS.meta_batch} "
      "divides over no more"
    )
  return fit(
    trainer,
    rng,
    schedule(),
    workdir,
    tasks_per_step=FLAGS.meta_batch * rng.size,
    validate=lambda state: validate(evaluation_params(state)),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )


def scorer(
  learner: MetaLearner,
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  split: str,
  num_tasks: int,
  **options: Any,
) -> Callable[[Params], dict[str, Estimate]]:
  """Returns `meta_params -> {metric: estimate}` on a split's fixed tasks."""
  score = task_scorer(learner, tasks, metrics, split, num_tasks, **options)
  return lambda params: {k: estimate(v) for k, v in score(params).items()}


def task_scorer(
  learner: MetaLearner,
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  split: str,
  num_tasks: int,
  **options: Any,
) -> Callable[[Params], dict[str, np.ndarray]]:
  """Returns `meta_params -> {metric: values}`, a value for each fixed task."""
  rng = evaluation_key(split)
  # What does not divide is padded.
  count = jax.process_count()
  mesh = task_mesh(-(-num_tasks // count) * count)
  return evaluator(
    learner, tasks, metrics, rng, num_tasks=num_tasks, mesh=mesh, **options
  )


def together(calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
  """Makes calls side by side, each of which compiles a program of its own.

  One after the other where there are other processes, which must compute the
  same in the same order.
  """
  if len(calls) > 1:
    tell(f"{len(calls)} test evaluations")
  alone = jax.process_count() == 1
  at_once = min(len(calls), usable_cores(), 4) if alone else 1
  with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    results = {key: pool.submit(call) for key, call in calls.items()}
    return {key: result.result() for key, result in results.items()}


def init_key(seed: int = 0) -> PRNGKey:
  """The key of the initial parameters, `seed` beyond the seed of the flags."""
  return jax.random.fold_in(jax.random.key(FLAGS.seed + seed), 0)


def task_key(seed: int = 0) -> PRNGKey:
  """The key of all training tasks, `seed` beyond the seed of the flags."""
  return jax.random.fold_in(jax.random.key(FLAGS.seed + seed), 1)


def evaluation_key(split: str) -> PRNGKey:
  """The key of the fixed tasks of "validation" or "test"."""
  # A purpose of its own for each key: training tasks are drawn from 1, whatever
  # the seeds.
  purpose = {"validation": 2, "test": 3}[split]
  return jax.random.fold_in(jax.random.key(FLAGS.eval_seed), purpose)


def finish(
  workdir: Path,
  experiment: str,
  protocol: Mapping[str, Any],
  metrics: Mapping[str, Estimate],
  trained: Trained,
  *,
  steps: int | None = None,
  recipe: saved.Recipe | None = None,
  inputs: jax.ShapeDtypeStruct | None = None,
  inverted: bool = False,
) -> None:
  """Writes `results.json` and prints the table and the files of the run.

  With a recipe, the shape and dtype of one example, and whether images are
  given with ink as 1, `metajax.load` loads what was trained.
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
    saved.save(workdir, recipe, params, inputs, seeds=seeds, inverted=inverted)
  show(
    workdir,
    metrics,
    note=f"{steps} meta-steps in {trained.wall_seconds:.1f} s, of which "
    f"{trained.compile_seconds:.1f} s compiling\n\n",
  )


def show(
  workdir: Path,
  metrics: Mapping[str, Estimate],
  of: str = "tasks",
  *,
  note: str = "",
) -> None:
  """Prints the table and the files of the run."""
  width = max(map(len, metrics))
  # The interval is over trainings where there are several.
  seeds = any(value.of_seeds for value in metrics.values())
  of = "seeds" if seeds else of
  print(f"\n{'metric':{width}}      mean +- 95% interval {of:>7}")
  for name, value in metrics.items():
    count = len(value.of_seeds) if seeds else value.num_tasks
    print(f"{name:{width}}  {value.mean:8.4f} +- {value.ci95:.4f}{count:15d}")
  print(f"\n{note}", end="")
  names = ("*.png", "results.json", saved.META_PARAMS)
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
  """Says which trainings are not finite."""
  bad = [
    str(FLAGS.seed + i)
    for i, mean in enumerate(value.of_seeds)
    if not math.isfinite(mean)
  ]
  return f" by --seed={', '.join(bad)}" if bad else ""
