"""Runs that differ in numbers alone, trained in one program, a folder each."""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.training import checkpoint
from metajax.training.calls import Call, means, next_length
from metajax.training.logging import Logger, jsonl, pretty, tell, tensorboard
from metajax.training.loop import Interrupted, Schedule
from metajax.training.seeds import STATE_AXES
from metajax.training.state import Trainer, TrainState
from metajax.training.watching import caught_signals, stalls_noticed
from metajax.types import PRNGKey


class Member(NamedTuple):
  """One of the runs.

  Attributes:
    rng: the key of its initial parameters.
    workdir: its folder.
    validate: scores its state on validation tasks.
    rates: see `loop.fit`.
  """

  rng: PRNGKey
  workdir: Path
  validate: Callable[[TrainState], dict[str, float]]
  rates: Callable[[TrainState], Mapping[str, float]] = lambda state: {}


def fit_together(
  trainer_of: Callable[[Sequence[int]], Trainer],
  members: Sequence[Member],
  schedule: Schedule,
  *,
  tasks_per_step: int,
  stall_seconds: float = 0.0,
) -> list[int]:
  """Trains runs to the end of the schedule, each as `loop.fit` would alone.

  Each leaves the checkpoints and records of a run of its own in its folder,
  from which `loop.fit` goes on. Its seconds there are its share of those of
  all. A run with a step that is not finite is left at its last checkpoint, and
  the others go on without it.

  Args:
    trainer_of: the trainer of some of the members, with keys `[S]`, `points`
      and `skip_non_finite` (see `meta_trainer`).
    members: the runs, whose checkpoints are of one and the same step.
    schedule: what is due when.
    tasks_per_step: the meta-batch of one run.
    stall_seconds: see `loop.fit`.

  Returns:
    Which members were left behind.

  Raises:
    Interrupted: on SIGINT or SIGTERM, once checkpoints are written.
    SaveError: if a checkpoint cannot be written.
    ValueError: if the members have checkpoints of different steps.
  """
  began = time.monotonic()
  left = list(range(len(members)))
  trainer = trainer_of(left)
  state = trainer.init(jax.numpy.stack([member.rng for member in members]))
  folders = [
    checkpoint.open_checkpoints(member.workdir / "checkpoints")
    for member in members
  ]
  restored = [
    checkpoint.restore(folder, _one(state, i))
    for i, folder in enumerate(folders)
  ]
  states = [
    _one(state, i) if found is None else found.state
    for i, found in enumerate(restored)
  ]
  notes = [{"skipped_steps": 0.0} | (r.notes if r else {}) for r in restored]
  earlier = [note.get("wall_seconds", 0.0) for note in notes]
  steps = {int(one.step) for one in states}
  if len(steps) > 1:
    raise ValueError(f"members: have checkpoints of steps {sorted(steps)}.")
  state, step = _stack(states, like=state), steps.pop()
  share = 0.0  # Of each of the runs that are left, of the seconds until now.

  def compiled(state: TrainState) -> Any:
    before = time.monotonic()
    train, _ = trainer.compile(state)
    seconds = (time.monotonic() - before) / len(left)
    for i in left:
      notes[i]["compile_seconds"] = notes[i].get("compile_seconds", 0) + seconds
    return train

  def passed(i: int) -> float:
    """Adds the seconds since the last time to each share."""
    nonlocal share, began
    now = time.monotonic()
    share, began = share + (now - began) / len(left), now
    return earlier[i] + share

  def save() -> None:
    for place, i in enumerate(left):
      notes[i]["wall_seconds"] = passed(i)
      checkpoint.save(folders[i], _one(state, place), notes[i])

  if step >= schedule.num_steps:
    return []
  tell(f"compiling the training loop of {len(left)} runs")
  train = compiled(state)
  with (
    contextlib.ExitStack() as stack,
    caught_signals() as caught,
    stalls_noticed(stall_seconds) as beat,
  ):
    loggers = [_loggers(stack, member.workdir, step) for member in members]
    steps_per_call = 1
    calls: list[Call] = []  # Their metrics are arrays over the runs left.
    while step < schedule.num_steps and left:
      beat(step)
      taken = min(steps_per_call, schedule.next_event(step) - step)
      before = time.monotonic()
      state, metrics = jax.block_until_ready(train(state, taken))
      elapsed = time.monotonic() - before
      step += taken
      metrics = jax.device_get(metrics)
      bad = metrics.pop("skipped") > 0
      calls.append(Call(taken, elapsed / len(left), metrics))
      steps_per_call = next_length(taken, elapsed)
      if bad.any():
        for place in np.flatnonzero(bad).tolist():
          tell(
            f"{members[left[place]].workdir.name}: a step up to {step} is not "
            "finite; the others go on"
          )
        keep = np.flatnonzero(~bad).tolist()
        passed(left[0])
        left = [left[i] for i in keep]
        if not left:
          break
        calls = [_of(call, keep) for call in calls]
        trainer = trainer_of(left)
        state = _stack([_one(state, i) for i in keep])
        train = compiled(state)

      due = schedule.due(step, schedule.log_every)
      for place, i in enumerate(left):
        scalars: dict[str, float] = {}
        if due:
          scalars |= means([_of(c, place) for c in calls], tasks_per_step)
          scalars |= members[i].rates(_one(state, place))
        if schedule.due(step, schedule.eval_every):
          scores = members[i].validate(_one(state, place))
          scalars |= {f"validation/{k}": v for k, v in scores.items()}
        if scalars:
          scalars["wall_seconds"] = passed(i)
          for log in loggers[i]:
            log(step, scalars)
          place_of = f"step {step}/{schedule.num_steps}"
          tell(f"{members[i].workdir.name}: {place_of}  {pretty(scalars)}")
      if due:
        calls = []
      if caught or schedule.due(step, schedule.checkpoint_every):
        save()
      if caught:
        raise Interrupted(signal.Signals(caught[0]), step)
  return [i for i in range(len(members)) if i not in left]


def _loggers(
  stack: contextlib.ExitStack, workdir: Path, step: int
) -> list[Logger]:
  """Opens the records of one run until the stack closes."""
  return [
    stack.enter_context(jsonl(workdir / "metrics.jsonl", step)),
    stack.enter_context(tensorboard(workdir / "tensorboard", step)),
  ]


def _one(state: TrainState, i: int) -> TrainState:
  """The state of one run."""
  return jax.tree.map(
    lambda axis, part: jax.tree.map(
      lambda x: x if axis is None else x[i], part
    ),
    STATE_AXES,
    state,
    is_leaf=lambda x: x is None,
  )


def _stack(
  states: Sequence[TrainState], like: TrainState | None = None
) -> TrainState:
  """The state of runs that are at one step, placed as another is."""
  step, *_ = states[0]
  rest = jax.tree.map(lambda *xs: jax.numpy.stack(xs), *(s[1:] for s in states))
  stacked = TrainState(step, *rest)
  if like is None:
    return stacked
  return jax.device_put(stacked, jax.tree.map(lambda x: x.sharding, like))


def _of(call: Call, places: Any) -> Call:
  """Returns a call with the metrics of some of the runs."""
  return call._replace(metrics={k: v[places] for k, v in call.metrics.items()})
