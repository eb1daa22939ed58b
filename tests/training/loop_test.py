"""The loop: what is due when, and runs that are interrupted and go on."""

import itertools
import json
import os
import shutil
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.training import (
  Trainer,
  TrainState,
  meta_trainer,
  task_mesh,
  watching,
)
from metajax.training import checkpoint as checkpoint_lib
from metajax.training.logging import read_jsonl
from metajax.training.loop import Interrupted, Schedule, fit

RNG = jax.random.key(0)
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def test_next_event_is_the_first_step_with_anything_due():
  for num_steps, *periods in itertools.product(range(1, 9), *3 * [range(1, 6)]):
    schedule = Schedule(num_steps, *periods)
    for step in range(num_steps):
      later = range(step + 1, num_steps + 1)
      expected = next(
        n for n in later if n == num_steps or any(n % p == 0 for p in periods)
      )
      assert schedule.next_event(step) == expected
      for period in periods:
        assert schedule.due(expected, period) == (
          expected == num_steps or expected in range(0, num_steps + 1, period)
        )


class Counter:
  """A trainer that counts: step s adds s to a parameter and reports s.

  Attributes:
    calls: what was asked of `train`, as (step before, number of steps).
    compiled: how often a program was asked for.
    during: called with the step at which a call of `train` ends.
  """

  def __init__(self, during=lambda step: None, metric=float):
    self.calls, self.compiled = [], 0
    self.during, self.metric = during, metric

  def trainer(self):
    def train(state, num_steps):
      before = int(state.step)
      self.calls.append((before, num_steps))
      steps = range(before + 1, before + num_steps + 1)
      self.during(steps[-1])
      params = state.meta_params + sum(steps)
      mean = np.mean([self.metric(s) for s in steps])
      new = TrainState(jnp.int32(steps[-1]), params, ())
      return new, {"loss": jnp.float32(mean)}

    def compile(state):
      self.compiled += 1
      return train, None

    return Trainer(
      lambda rng: TrainState(jnp.int32(0), jnp.int32(0), ()), compile
    )


def _fit(counter, schedule, workdir, validate=None, **options):
  return fit(
    counter.trainer(),
    RNG,
    schedule,
    workdir,
    tasks_per_step=2,
    validate=validate,
    **options,
  )


def _lines(workdir):
  return read_jsonl(workdir / "metrics.jsonl")


def _steps(workdir, name):
  return [line["step"] for line in _lines(workdir) if name in line]


def _checkpoints(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def _multiples(period, num_steps):
  """The steps of a period and the last one."""
  return sorted({*range(period, num_steps + 1, period), num_steps})


@pytest.mark.parametrize(
  "schedule",
  [
    Schedule(23, log_every=3, eval_every=4, checkpoint_every=5),
    Schedule(12, log_every=100, eval_every=6, checkpoint_every=1),
    Schedule(1, log_every=2, eval_every=2, checkpoint_every=2),
  ],
)
def test_everything_happens_exactly_when_it_is_due(
  schedule, tmp_path, monkeypatch
):
  validated, saved = [], []

  def validate(state):
    validated.append(int(state.step))
    return {"accuracy": 0.5 * int(state.step)}

  save = checkpoint_lib.save

  def note_and_save(checkpoints, state, notes):
    saved.append(int(state.step))
    save(checkpoints, state, notes)

  monkeypatch.setattr(checkpoint_lib, "save", note_and_save)
  counter = Counter()
  trained = _fit(counter, schedule, tmp_path, validate)

  last = schedule.num_steps
  logged = _multiples(schedule.log_every, last)
  assert int(trained.state.step) == last
  assert int(trained.state.meta_params) == last * (last + 1) // 2
  assert validated == _multiples(schedule.eval_every, last)
  assert saved == _multiples(schedule.checkpoint_every, last)
  assert _steps(tmp_path, "loss") == logged
  assert _steps(tmp_path, "tasks_per_second") == logged
  assert _steps(tmp_path, "validation/accuracy") == validated
  steps = [line["step"] for line in _lines(tmp_path)]
  assert steps == sorted({*logged, *validated})
  # However the steps are shared among calls, a line is the mean of all steps
  # since the line before: (first + last) / 2.
  losses = [line["loss"] for line in _lines(tmp_path) if "loss" in line]
  expected = [
    (a + 1 + b) / 2 for a, b in zip([0, *logged], logged, strict=False)
  ]
  np.testing.assert_allclose(losses, expected, rtol=1e-6)
  # Every step is taken once, in one program.
  assert [a for a, _ in counter.calls] == list(
    itertools.accumulate((n for _, n in counter.calls[:-1]), initial=0)
  )
  assert counter.compiled == 1


def test_fast_steps_share_a_call_but_not_across_events(tmp_path):
  counter = Counter()
  _fit(counter, Schedule(2000, 1000, 1000, 1000), tmp_path)
  for before, taken in counter.calls:
    assert before // 1000 == (before + taken - 1) // 1000
  lengths = [taken for _, taken in counter.calls]
  assert max(lengths) > 1
  assert all(b <= 8 * a for a, b in itertools.pairwise(lengths))


def test_validation_alone_makes_a_line_without_training_metrics(tmp_path):
  _fit(
    Counter(),
    Schedule(4, log_every=4, eval_every=2, checkpoint_every=4),
    tmp_path,
    lambda state: {"accuracy": 1.0},
  )
  first, second = _lines(tmp_path)
  assert 0 < first.pop("wall_seconds") < second["wall_seconds"]
  assert first == {"step": 2, "validation/accuracy": 1.0}
  assert set(second) == {
    "step",
    "loss",
    "tasks_per_second",
    "wall_seconds",
    "validation/accuracy",
  }


def test_rates_and_loggers_get_every_line_of_every_session(tmp_path):
  schedule = Schedule(4, log_every=2, eval_every=3, checkpoint_every=4)
  found = []

  def log(step, scalars):
    found.append((step, scalars))

  for num_steps in (4, 8):  # The run is extended.
    _fit(
      Counter(),
      schedule._replace(num_steps=num_steps),
      tmp_path,
      lambda state: {"accuracy": 1.0},
      rates=lambda state: {"outer_lr": 1 / int(state.step)},
      loggers=[log],
    )
  lines = _lines(tmp_path)
  assert [(line.pop("step"), line) for line in lines] == found
  rates = {step: x["outer_lr"] for step, x in found if "outer_lr" in x}
  assert rates == {2: 1 / 2, 4: 1 / 4, 6: 1 / 6, 8: 1 / 8}


def test_loss_that_is_not_a_number_is_logged_as_legal_json(tmp_path):
  counter = Counter(metric=lambda s: {1: np.nan, 2: np.inf}.get(s, s))
  _fit(counter, Schedule(3, 1, 3, 3), tmp_path)

  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  text = (tmp_path / "metrics.jsonl").read_text()
  losses = [
    json.loads(line, parse_constant=refuse)["loss"]
    for line in text.splitlines()
  ]
  assert losses == ["nan", "inf", 3.0]


def test_run_that_lost_its_newest_checkpoint_has_every_line_once(tmp_path):
  schedule = Schedule(10, log_every=1, eval_every=3, checkpoint_every=4)

  def validate(state):
    return {"accuracy": 0.5}

  _fit(Counter(), schedule, tmp_path, validate)
  before = _lines(tmp_path)
  assert _checkpoints(tmp_path) == [8, 10]
  shutil.rmtree(tmp_path / "checkpoints" / "10")
  counter = Counter()
  trained = _fit(counter, schedule, tmp_path, validate)
  assert counter.calls[0][0] == 8
  assert int(trained.state.meta_params) == 55
  after = _lines(tmp_path)
  assert [line["step"] for line in after] == list(range(1, 11))
  for old, new in zip(before, after, strict=True):
    # Up to the checkpoint, the line itself; then one of the same numbers.
    assert old == new or new["step"] > 8
    for clock in ("tasks_per_second", "wall_seconds"):
      del old[clock], new[clock]
    assert old == new


def test_run_that_is_over_takes_no_step_and_keeps_its_records(tmp_path):
  schedule = Schedule(5, 1, 1, 5)
  first = _fit(Counter(), schedule, tmp_path)
  before = _lines(tmp_path)
  counter = Counter()
  second = _fit(counter, schedule, tmp_path)
  assert counter.calls == []
  chex.assert_trees_all_equal(first.state, second.state)
  assert _lines(tmp_path) == before


def test_fewer_steps_than_were_taken_are_an_error(tmp_path):
  schedule = Schedule(6, 2, 6, 6)
  _fit(Counter(), schedule, tmp_path)
  with pytest.raises(ValueError, match="^num_steps=2: .* has taken 6"):
    _fit(Counter(), schedule._replace(num_steps=2), tmp_path)
  assert _checkpoints(tmp_path) == [6]
  assert _fit(Counter(), schedule, tmp_path).state.step == 6


def test_seconds_are_those_of_all_sessions(tmp_path):
  schedule = Schedule(2, 1, 1, 1)
  _fit(Counter(), schedule, tmp_path)
  checkpoints = checkpoint_lib.open_checkpoints(tmp_path / "checkpoints")
  state = TrainState(jnp.int32(3), jnp.int32(6), ())
  checkpoint_lib.save(
    checkpoints, state, {"wall_seconds": 1e6, "compile_seconds": 1e4}
  )
  checkpoints.manager.close()
  trained = _fit(Counter(), schedule._replace(num_steps=4), tmp_path)
  assert 1e6 < trained.wall_seconds < 2e6
  assert 1e4 < trained.compile_seconds < 2e4
  # They are in the last checkpoint for the session after.
  again = _fit(Counter(), schedule._replace(num_steps=4), tmp_path)
  assert 1e6 < again.wall_seconds < 2e6
  assert 1e4 < again.compile_seconds < 2e4


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("where", ["train", "validate"])
def test_signal_ends_the_run_with_a_checkpoint_at_that_step(
  signum, where, tmp_path
):
  # No checkpoint is due at step 2.
  schedule = Schedule(9, log_every=3, eval_every=2, checkpoint_every=7)

  def interrupt(step):
    if step == 2:
      os.kill(os.getpid(), signum)

  def validate(state):
    if where == "validate":
      interrupt(int(state.step))
    return {"accuracy": 0.5}

  during = interrupt if where == "train" else lambda step: None
  with pytest.raises(Interrupted, match=signum.name) as caught:
    _fit(Counter(during), schedule, tmp_path, validate)
  assert (caught.value.signum, caught.value.step) == (signum, 2)
  assert _checkpoints(tmp_path) == [2]
  # What was due at that step was done.
  assert _steps(tmp_path, "validation/accuracy") == [2]
  counter = Counter()
  trained = _fit(counter, schedule, tmp_path, lambda state: {"accuracy": 0.5})
  assert counter.calls[0][0] == 2
  assert int(trained.state.meta_params) == 45
  assert _steps(tmp_path, "loss") == [3, 6, 9]
  assert _steps(tmp_path, "validation/accuracy") == [2, 4, 6, 8, 9]


def test_step_that_does_not_end_is_warned_of_until_it_does(
  tmp_path, monkeypatch
):
  warnings, told = [], threading.Event()

  def warn(message, *arguments):
    text = message % arguments
    if "since step 2." in text:  # Others may take a hundredth of a second, too.
      warnings.append(text)
      if len(warnings) == 2:
        told.set()

  monkeypatch.setattr(watching.logging, "warning", warn)

  def during(step):
    if step == 3:  # Hangs until it was warned of twice.
      assert told.wait(60)

  trained = _fit(
    Counter(during), Schedule(4, 1, 9, 9), tmp_path, stall_seconds=0.01
  )
  assert int(trained.state.step) == 4
  assert "for 0.01 s" in warnings[0]
  assert "for 0.02 s" in warnings[1]


@pytest.mark.parametrize("signum", SIGNALS)
def test_second_signal_does_what_it_did_before(signum, tmp_path, capfd):
  class Left(Exception):
    pass

  def leave(signum, frame):
    raise Left

  def during(step):
    os.kill(os.getpid(), signum)
    os.kill(os.getpid(), signum)

  before = signal.signal(signum, leave)
  try:
    with pytest.raises(Left):
      _fit(Counter(during), Schedule(2, 1, 1, 1), tmp_path)
  finally:
    signal.signal(signum, before)
  assert "\nstopping after a checkpoint; " in capfd.readouterr().err


@pytest.mark.parametrize("end", ["whole", "interrupted", "raised"])
def test_handlers_of_signals_are_put_back_however_the_run_ends(end, tmp_path):
  def during(step):
    if end == "interrupted":
      os.kill(os.getpid(), signal.SIGTERM)
    if end == "raised":
      raise OSError("from within")

  def handler(signum, frame):
    raise AssertionError("Not this one, while the loop runs.")

  before = [signal.signal(signum, handler) for signum in SIGNALS]
  try:
    errors = {"interrupted": Interrupted, "raised": OSError}
    if end == "whole":
      _fit(Counter(during), Schedule(2, 1, 1, 1), tmp_path)
    else:
      with pytest.raises(errors[end]):
        _fit(Counter(during), Schedule(2, 1, 1, 1), tmp_path)
    assert [signal.getsignal(signum) for signum in SIGNALS] == 2 * [handler]
  finally:
    for signum, old in zip(SIGNALS, before, strict=True):
      signal.signal(signum, old)


@pytest.mark.slow
def test_interrupted_training_ends_in_the_same_bits(tmp_path):
  """The real trainer; interrupted twice, once before any checkpoint is due."""
  trainer = meta_trainer(
    maml(MLP(1, (4,)), mean_squared_error, optax.sgd(0.01), 1),
    optax.adam(0.01),
    sinusoid(3, 3),
    meta_batch=4,
    task_chunk=2,
    mesh=task_mesh(1),
    rng=jax.random.key(1),
  )
  # Compiled once for the three sessions.
  program = trainer.compile(trainer.init(RNG))
  trainer = trainer._replace(compile=lambda state: program)
  schedule = Schedule(12, log_every=2, eval_every=1, checkpoint_every=5)

  def run(workdir, interrupt_at=()):
    def validate(state):
      if int(state.step) in interrupt_at:
        os.kill(os.getpid(), signal.SIGTERM)
      return {"weight": float(jax.tree.leaves(state.meta_params)[-1].sum())}

    return fit(
      trainer, RNG, schedule, workdir, tasks_per_step=4, validate=validate
    ).state

  whole = run(tmp_path / "whole")
  for step in (3, 8):
    with pytest.raises(Interrupted):
      run(tmp_path / "interrupted", {step})
  resumed = run(tmp_path / "interrupted")
  assert int(resumed.step) == 12
  chex.assert_trees_all_equal(resumed, whole)
  weights = [
    [(line["step"], line["validation/weight"]) for line in _lines(workdir)]
    for workdir in (tmp_path / "whole", tmp_path / "interrupted")
  ]
  assert weights[0] == weights[1]
  assert [step for step, _ in weights[0]] == list(range(1, 13))
