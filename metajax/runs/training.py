"""The trainer, its schedule and its optimizer, by the flags."""

from collections.abc import Callable
from pathlib import Path

import jax
import optax

from metajax.optimizers import last_step_size
from metajax.runs import loggers
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
from metajax.types import MetaLearner, Params, PRNGKey, TaskFamily

# What is recorded of a state beside its metrics.
Rates = Callable[[TrainState], dict[str, float]]


def outer_optimizer(
  schedule: str,
  updates_per_step: int = 1,
  step_size: float | None = None,
  *,
  rule: str = "adam",
) -> optax.GradientTransformation:
  """Adam or SGD, with the given step size, or --outer_lr, at its beginning."""
  rate = _step_sizes(schedule, updates_per_step, step_size)
  return {"adam": optax.adam, "sgd": optax.sgd}[rule](rate)


def outer_rates(
  updates_per_step: int = 1, step_size: float | None = None
) -> Rates:
  """Records the step size of an `outer_optimizer` of --outer_schedule."""
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
    rates=outer_rates(),
    loggers=loggers.by_flag(workdir),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )
