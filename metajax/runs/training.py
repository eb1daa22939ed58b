"""The trainer, its schedule and its optimizer, from the flags."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from metajax.optimizers import last_step_size
from metajax.recipes import Recipe
from metajax.runs import loggers, together
from metajax.runs.flags import FLAGS
from metajax.runs.rng_keys import init_key, task_key
from metajax.training import (
  Trainer,
  TrainState,
  evaluation_params,
  meta_trainer,
  task_mesh,
)
from metajax.training.logging import tell
from metajax.training.loop import Schedule, Trained, fit
from metajax.types import LossFn, MetaLearner, Params, PRNGKey, TaskFamily

# A function of the state whose values are recorded beside the metrics.
Rates = Callable[[TrainState], dict[str, float]]


def outer_optimizer(
  schedule: str,
  updates_per_step: int = 1,
  step_size: float | None = None,
  *,
  rule: str = "adam",
) -> optax.GradientTransformation:
  """Returns the outer optimizer with a schedule of its step size.

  Args:
    schedule: the schedule, see --outer_schedule.
    updates_per_step: optimizer updates per training step.
    step_size: the step size at the beginning; None: --outer_lr.
    rule: "adam", "sgd" or "momentum".
  """
  rate = _step_sizes(schedule, updates_per_step, step_size)
  if rule == "momentum":
    # The values of MetaOptNet (Lee et al. 2019, section 4.1).
    decay = optax.add_decayed_weights(5e-4)
    return optax.chain(decay, optax.sgd(rate, momentum=0.9, nesterov=True))
  return {"adam": optax.adam, "sgd": optax.sgd}[rule](rate)


def outer_rates(
  updates_per_step: int = 1, step_size: float | None = None
) -> Rates:
  """Returns a function that records the step size of --outer_schedule."""
  rate = _step_sizes(FLAGS.outer_schedule, updates_per_step, step_size)
  return lambda state: {"outer_lr": last_step_size(rate, state.opt_state)}


def _step_sizes(
  schedule: str, updates_per_step: int, step_size: float | None
) -> optax.ScalarOrSchedule:
  step_size = FLAGS.outer_lr if step_size is None else step_size
  updates = FLAGS.steps * updates_per_step
  if schedule == "cosine":
    return optax.cosine_decay_schedule(step_size, updates)
  if schedule == "linear":
    return optax.linear_schedule(step_size, 0.0, updates)
  return step_size


def schedule() -> Schedule:
  """Returns the steps of training, logging, evaluation and checkpoints."""
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
  optimizer: optax.GradientTransformation | None = None,
  task_chunk: int | None = None,
  recipe: Recipe | None = None,
  metrics: Mapping[str, LossFn] | None = None,
) -> Any:
  """Builds the trainer that the flags describe.

  Args:
    learner: the learner.
    tasks: the task family to train on.
    seed: added to --seed.
    rule: the outer optimizer, "adam", "sgd" or "momentum".
    skip_non_finite: see `meta_trainer`.
    rng: the key of the tasks; None: the key of the seed.
    optimizer: the outer optimizer; None: the optimizer of the flags.
    task_chunk: see `meta_trainer`; None: --task_chunk.
    recipe: the description of the learner for `recipes.build`. With a recipe,
      one program can train several points of a sweep.
    metrics: the metrics of the learner that the recipe describes.

  Returns:
    A `Trainer`; with --together, a `together.Planned`. `train` takes both.
  """
  rng = task_key(seed) if rng is None else rng
  by_flags = functools.partial(outer_optimizer, FLAGS.outer_schedule, rule=rule)
  if FLAGS.together:
    return together.Planned(
      learner,
      tasks,
      rng,
      lambda rate: by_flags(step_size=rate),
      FLAGS.outer_lr,
      schedule(),
      recipe,
      metrics,
      outer_rates(),
    )
  return meta_trainer(
    learner,
    by_flags() if optimizer is None else optimizer,
    tasks,
    meta_batch=FLAGS.meta_batch,
    rng=rng,
    task_chunk=task_chunk or FLAGS.task_chunk or None,
    skip_non_finite=skip_non_finite,
  )


def train(
  trainer: Trainer | together.Planned,
  workdir: Path,
  validate: Callable[[Params], dict[str, float]],
  *,
  rng: PRNGKey | None = None,
) -> Trained:
  """Meta-trains by the flags, from the newest checkpoint in the workdir.

  Args:
    trainer: from `trainer`.
    workdir: the folder of the run.
    validate: `(meta_params) -> scores`.
    rng: the key of the initial parameters, or keys `[S]` of S seeds; None: the
      key of --seed.
  """
  rng = init_key() if rng is None else rng
  if isinstance(trainer, together.Planned):
    raise together.Ready(trainer, workdir, validate, rng)
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
    rates=outer_rates(),
    loggers=loggers.by_flag(workdir),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )
