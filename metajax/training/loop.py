"""The meta-training loop: steps, records, validation, checkpoints, signals."""

import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging

from metajax.training import checkpoint, seeds
from metajax.training.calls import Call, means, next_length
from metajax.training.logging import Logger, records, tell, waiting
from metajax.training.processes import agree, on_this_process
from metajax.training.state import StoppedEarly, Trainer, TrainState
from metajax.training.watching import caught_signals, stalls_noticed
from metajax.types import PRNGKey


class Interrupted(Exception):
  """A signal ended the loop, after a checkpoint, if it could be written."""

  def __init__(self, signum: int, step: int, saved: bool = True):
    super().__init__(f"{signal.Signals(signum).name} at step {step}")
    self.signum = signum
    self.step = step
    self.saved = saved


class NonFinite(ArithmeticError):
  """A step is not finite; a checkpoint is from before it."""

  def __init__(self, step: int, saved: bool = True):
    super().__init__(
      f"the loss, the gradient or the update of step {step} is not finite"
    )
    self.step = step
    self.saved = saved


class Schedule(NamedTuple):
  """When what happens, in meta-steps.

  Attributes:
    num_steps: the length of the run.
    log_every: steps between two lines of metrics.
    eval_every: steps between two validations.
    checkpoint_every: steps between two checkpoints.
  """

  num_steps: int
  log_every: int
  eval_every: int
  checkpoint_every: int

  def next_event(self, step: int) -> int:
    """Returns the first step after `step` at which something is due."""
    periods = (self.log_every, self.eval_every, self.checkpoint_every)
    return min(self.num_steps, *((step // p + 1) * p for p in periods))

  def due(self, step: int, period: int) -> bool:
    """Tells whether what has this period is due; at the end, everything is."""
    return step % period == 0 or step == self.num_steps


class Trained(NamedTuple):
  """The end of a run: its state, and sums over all its sessions.

  Attributes:
    state: the training state.
    wall_seconds: of everything, compilation and validation too.
    compile_seconds: of compilation of the training loop.
    skipped_steps: those that were not finite.
  """

  state: TrainState
  wall_seconds: float
  compile_seconds: float
  skipped_steps: int = 0


def fit(
  trainer: Trainer,
  rng: PRNGKey,
  schedule: Schedule,
  workdir: Path,
  *,
  tasks_per_step: int,
  validate: Callable[[TrainState], dict[str, float]] | None = None,
  rates: Callable[[TrainState], Mapping[str, float]] | None = None,
  loggers: Sequence[Logger] = (),
  must_save: bool = True,
  stall_seconds: float = 0.0,
) -> Trained:
  """Trains to the end of the schedule, from the newest checkpoint on.

  The parameters at the end do not depend on whether and where the run was
  interrupted, bit for bit, on the same kind of device.

  Args:
    trainer: from `training.meta_trainer`.
    rng: the key of the initial parameters.
    schedule: what is due when.
    workdir: the run's folder: `checkpoints/`, `metrics.jsonl`, `tensorboard/`.
    tasks_per_step: the meta-batch, for the throughput shown.
    validate: scores a state on validation tasks; names get "validation/".
    rates: what else of a state is recorded with the metrics, such as the outer
      step size (`optimizers.last_step_size`).
    loggers: functions `(step, scalars)` that are given every record, too, in
      the first process alone.
    must_save: whether a checkpoint or a record that cannot be written ends the
      run, rather than in a warning.
    stall_seconds: after which it warns that no step has ended, where one takes
      a second or less as a rule; 0: never.

  Raises:
    Interrupted: on SIGINT or SIGTERM, once a checkpoint is written. A second
      signal does what it did before.
    NonFinite: once a checkpoint of the state before such a step is written.
    SaveError: if a checkpoint cannot be written, with `must_save`.
    ValueError: if the run has taken more steps than the schedule has.
  """
  start = time.monotonic()
  state = trainer.init(rng)
  checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints")
  restored = checkpoint.restore(checkpoints, state)
  state, notes = restored or (state, {})
  notes = {
    "wall_seconds": 0.0,
    "compile_seconds": 0.0,
    "skipped_steps": 0,
    **notes,
  }
  earlier, num_seeds = notes["wall_seconds"], seeds.count(rng) or 1
  step = int(state.step)
  if step:
    tell(f"resumed at step {step}")

  if step > schedule.num_steps:
    raise ValueError(
      f"num_steps={schedule.num_steps}: the run in {workdir} has taken {step} "
      f"steps; give {step} or more, or another folder."
    )
  if step == schedule.num_steps:
    return Trained(
      on_this_process(state),
      earlier,
      notes["compile_seconds"],
      round(notes["skipped_steps"]),
    )

  tell("compiling the training loop")
  before_compile = time.monotonic()
  train, _ = trainer.compile(state)
  notes["compile_seconds"] += time.monotonic() - before_compile

  def save(state: TrainState) -> bool:
    notes["wall_seconds"] = earlier + time.monotonic() - start
    try:
      checkpoint.save(checkpoints, state, notes)
    except checkpoint.SaveError as error:
      if must_save:
        raise
      logging.warning("%s.", error)
      return False
    return True

  steps_per_call = 1
  calls: list[Call] = []  # Since the last line of the log.
  with (
    records(
      workdir, step, schedule.num_steps, loggers, must_write=must_save
    ) as record,
    caught_signals() as caught,
    stalls_noticed(stall_seconds) as beat,
  ):
    while step < schedule.num_steps:
      beat(step)
      taken = min(steps_per_call, schedule.next_event(step) - step)
      before = time.monotonic()
      with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoppedEarly)  # `NonFinite` says it.
        state, metrics = jax.block_until_ready(train(state, taken))
      elapsed = time.monotonic() - before
      if int(state.step) < step + taken:
        raise NonFinite(int(state.step), save(state))
      step += taken
      metrics = jax.device_get(metrics)
      skipped = metrics.get("skipped", 0.0)  # The mean over seeds.
      notes["skipped_steps"] += float(taken * num_seeds * skipped)
      calls.append(Call(taken, elapsed, metrics))
      steps_per_call = next_length(taken, elapsed)
      record.progress(step, means(calls, tasks_per_step))

      scalars: dict[str, float] = {}
      if schedule.due(step, schedule.log_every):
        scalars |= means(calls, tasks_per_step)
        scalars |= rates(state) if rates is not None else {}
        calls = []
      if validate is not None and schedule.due(step, schedule.eval_every):
        with waiting(f"validating at step {step}"):
          scores = validate(state)
        scalars |= {f"validation/{k}": v for k, v in scores.items()}
      if scalars:
        scalars["wall_seconds"] = earlier + time.monotonic() - start
        record.write(step, scalars)
      # Processes differ in their clocks, and not all may get a signal.
      steps_per_call, signum = agree(steps_per_call, caught[0] if caught else 0)
      saved = False
      if signum or schedule.due(step, schedule.checkpoint_every):
        saved = save(state)
      if signum:
        raise Interrupted(signum, step, saved)
  return Trained(
    on_this_process(state),
    earlier + time.monotonic() - start,
    notes["compile_seconds"],
    round(notes["skipped_steps"]),
  )
