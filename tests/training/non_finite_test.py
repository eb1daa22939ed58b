"""Steps that are not finite end a run or are skipped; none of it is lost."""

import os
import resource
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.training import StoppedEarly, checkpoint, logging, meta_trainer
from metajax.training.inspection import inspect_step
from metajax.training.logging import read_jsonl
from metajax.training.loop import NonFinite, Schedule, fit
from metajax.types import Batch, Episode, MetaLearner, State

BAD = 5  # The step that goes wrong.
RNG, KEY = jax.random.key(1), jax.random.key(2)


def _tasks(rng):
  """The task of a number to be near to."""
  target = jax.random.normal(rng, (1, 1))
  batch = Batch(target, target)
  return Episode(batch, batch)


def _learner(bad_value, of_loss):
  """Goes by gradients to the tasks' numbers, but for one step."""

  def at_step(step):
    def meta_grad(params, episodes, rng):
      del rng
      bad = jnp.where(step == BAD, bad_value, 0.0)
      gap = params["w"] - episodes.query.inputs
      loss = 0.5 * (gap**2).mean() + (bad if of_loss else 0.0)
      grad = gap.mean() + (0.0 if of_loss else bad)
      return {"w": grad}, {"loss": loss}

    return MetaLearner(init, lambda params, *_: params, None, meta_grad)

  def init(rng, inputs):
    return {"w": jnp.float32(0.0)}

  return at_step(-1)._replace(schedule=at_step)


def _trainer(bad_value=np.nan, of_loss=False, skip=False, optimizer=None):
  return meta_trainer(
    _learner(bad_value, of_loss),
    optimizer or optax.adam(0.1),
    _tasks,
    meta_batch=4,
    rng=RNG,
    skip_non_finite=skip,
  )


def _train(trainer, num_steps):
  state = trainer.init(KEY)
  return trainer.compile(state)[0](state, num_steps)


@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of_loss", [False, True])
def test_training_stops_before_the_step_with_the_state_it_had(
  bad_value, of_loss
):
  trainer = _trainer(bad_value, of_loss)
  state, metrics = _train(trainer, 9)
  expected, means = _train(trainer, BAD)
  assert state.step == BAD
  for found, leaf in zip(
    jax.tree.leaves((state, metrics)),
    jax.tree.leaves((expected, means)),
    strict=True,
  ):
    np.testing.assert_array_equal(found, leaf)
  # And it goes no further.
  train, _ = trainer.compile(state)
  again, _ = train(state, 3)
  assert again.step == BAD


# A finite gradient of step 5, and the optimizer that makes of it what is not.
UPDATES = {
  "second moment": (1e25, lambda: optax.adam(0.1)),
  "parameters": (3e38, lambda: optax.sgd(2.0)),
  "sum of squares": (1e25, lambda: optax.adagrad(0.1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UPDATES)
def test_updates_are_watched_as_gradients_are(kind, tmp_path):
  grad, optimizer = UPDATES[kind]
  trainer = _trainer(grad, optimizer=optimizer())
  state, _ = _train(trainer, BAD)
  with pytest.raises(NonFinite, match=f"step {BAD} is not finite"):
    _fit(trainer, tmp_path)
  checkpoints = checkpoint.open_checkpoints(tmp_path / "checkpoints")
  found = checkpoint.restore(checkpoints, trainer.init(KEY)).state
  for leaf, expected in zip(
    jax.tree.leaves(found), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(leaf, expected)
    assert np.isfinite(leaf).all()
  skipping = _trainer(grad, skip=True, optimizer=optimizer())
  after, metrics = _train(skipping, BAD + 1)
  assert after.step == BAD + 1
  np.testing.assert_array_equal(after.meta_params["w"], state.meta_params["w"])
  np.testing.assert_allclose(metrics["skipped"], 1 / (BAD + 1), rtol=1e-6)


def test_a_call_that_stops_early_warns_and_a_run_does_not(tmp_path):
  with pytest.warns(StoppedEarly, match=f"before step {BAD}, 4 steps early"):
    _train(_trainer(), BAD + 4)
  with warnings.catch_warnings():
    warnings.simplefilter("error", StoppedEarly)
    _train(_trainer(), BAD)
    with pytest.raises(NonFinite):
      _fit(_trainer(), tmp_path)


def test_adam_without_eps_stops_at_its_first_zero_gradient():
  """0 / 0 in the parameters, of a gradient that is finite."""

  def meta_grad(params, episodes, rng):
    return jax.tree.map(jnp.zeros_like, params), {"loss": jnp.float32(1.0)}

  learner = _learner(0.0, False)._replace(meta_grad=meta_grad, schedule=None)
  trainer = meta_trainer(
    learner, optax.adam(0.1, eps=0.0), _tasks, meta_batch=2, rng=RNG
  )
  state, _ = _train(trainer, 3)
  assert state.step == 0
  assert state.meta_params["w"] == 0.0


def test_a_number_that_is_infinite_from_the_beginning_may_be_so():
  """The best value that `reduce_on_plateau` has seen, of ten steps."""
  optimizer = optax.chain(
    optax.sgd(0.1), optax.contrib.reduce_on_plateau(accumulation_size=4)
  )
  trainer = _trainer(0.0, optimizer=optimizer)
  state, _ = _train(trainer, 3)
  assert state.step == 3
  assert optax.tree.get(state.opt_state, "best_value") == np.inf


def test_a_skipped_step_changes_nothing_and_counts_in_nothing():
  state, metrics = _train(_trainer(skip=True), 9)
  assert state.step == 9
  # Adam in numpy, on the eight tasks' means.
  w, m, v, count, losses = 0.0, 0.0, 0.0, 0, []
  for step in range(9):
    keys = [
      jax.random.fold_in(jax.random.fold_in(RNG, step), i) for i in range(4)
    ]
    gaps = w - np.array([_tasks(key).query.inputs.item() for key in keys])
    if step == BAD:
      continue
    losses.append(0.5 * np.mean(gaps**2))
    count += 1
    m, v = 0.9 * m + 0.1 * gaps.mean(), 0.999 * v + 0.001 * gaps.mean() ** 2
    w -= 0.1 * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
  np.testing.assert_allclose(state.meta_params["w"], w, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(metrics["skipped"], 1 / 9, rtol=1e-6)


def _fit(trainer, workdir, num_steps=9, log_every=3, **options):
  schedule = Schedule(num_steps, log_every, 100, 4)
  return fit(trainer, KEY, schedule, workdir, tasks_per_step=4, **options)


@pytest.mark.slow
def test_the_loop_leaves_a_checkpoint_of_the_step(tmp_path):
  trainer = _trainer()
  for _ in range(2):  # Running it again ends there again.
    with pytest.raises(NonFinite, match=f"step {BAD} is not finite") as raised:
      _fit(trainer, tmp_path)
    assert raised.value.step == BAD
  opened = checkpoint.open_checkpoints(tmp_path / "checkpoints")
  like = trainer.init(KEY)
  assert checkpoint.restore(opened, like).state.step == BAD
  assert checkpoint.restore(opened, like, at_most=BAD - 1).state.step == 4
  assert checkpoint.restore(opened, like, at_most=3) is None
  # With the step skipped, the same run goes on.
  assert _fit(_trainer(skip=True), tmp_path).state.step == 9


def test_skipped_steps_are_counted_over_interruptions(tmp_path):
  trainer = _trainer(skip=True)
  assert _fit(trainer, tmp_path, 7).skipped_steps == 1
  assert _fit(trainer, tmp_path, 9).skipped_steps == 1
  assert _fit(trainer, tmp_path, 9).skipped_steps == 1
  lines = read_jsonl(tmp_path / "metrics.jsonl")
  # The call of the skipped step, by itself or with others, spoils no line.
  assert all(isinstance(line["loss"], float) for line in lines)
  skipped = {line["step"]: line["skipped"] for line in lines}
  assert skipped == {3: 0, 6: pytest.approx(1 / 3), 7: 0, 9: 0}


def test_a_line_of_skipped_steps_alone_says_nan(tmp_path):
  _fit(_trainer(skip=True), tmp_path, BAD + 2, log_every=1)
  lines = {
    line["step"]: line for line in read_jsonl(tmp_path / "metrics.jsonl")
  }
  assert lines[BAD + 1]["skipped"] == 1.0
  assert lines[BAD + 1]["loss"] == lines[BAD + 1]["gradient_norm"] == "nan"
  assert isinstance(lines[BAD + 2]["loss"], float)


def test_inspection_tells_the_tasks_apart():
  def meta_grad(params, episodes, rng):
    # The logarithm of a negative number.
    target = jnp.log(episodes.query.inputs).mean()
    grads = {"w": params["w"] - target, "v": params["v"]}
    return grads, {"loss": target}

  learner = MetaLearner(
    lambda rng, inputs: {"w": jnp.float32(0.5), "v": jnp.float32(2.0)},
    lambda params, *_: params,
    None,
    meta_grad,
  )
  trainer = meta_trainer(learner, optax.sgd(0.1), _tasks, meta_batch=6, rng=RNG)
  state = trainer.init(KEY)
  found = inspect_step(learner, _tasks, state, meta_batch=6, rng=RNG)
  keys = [jax.random.fold_in(jax.random.fold_in(RNG, 0), i) for i in range(6)]
  targets = np.array([_tasks(key).query.inputs.item() for key in keys])
  assert 0 < np.sum(targets < 0) < 6
  np.testing.assert_array_equal(found.finite["w"], targets > 0)
  assert found.finite["v"].all()
  with np.errstate(invalid="ignore"):
    logs = np.log(targets)
  np.testing.assert_allclose(found.metrics["loss"], logs, rtol=1e-5)
  norms = np.hypot(0.5 - logs, 2.0)
  np.testing.assert_allclose(found.metrics["gradient_norm"], norms, rtol=1e-5)


def test_noise_of_an_inspected_learner_is_that_of_training_one_by_one():
  """It was drawn by the keys of the tasks."""

  def meta_grad(params, episodes, rng):
    noise = jax.random.normal(rng, (1, 1))
    gap = jnp.abs(noise - episodes.query.inputs).min()
    return params, {"loss": noise.mean(), "gap": gap}

  learner = MetaLearner(
    lambda rng, inputs: jnp.ones(1), lambda params, *_: params, None, meta_grad
  )
  trainer = meta_trainer(
    learner, optax.sgd(0.1), _tasks, meta_batch=2, rng=RNG, task_chunk=1
  )
  state = trainer.init(KEY)
  found = inspect_step(learner, _tasks, state, meta_batch=2, rng=RNG)
  assert (found.metrics["gap"] > 0).all()
  _, metrics = trainer.compile(state)[0](state, 1)
  np.testing.assert_allclose(
    metrics["loss"], found.metrics["loss"].mean(), 1e-6
  )


def test_inspected_norms_are_of_weights_like_the_trainers():
  """New statistics, such as a variance of 1e4, are no gradient."""

  def meta_grad(params, episodes, rng):
    del rng
    grads = {
      "w": jnp.asarray([3.0, 4.0], jnp.bfloat16),
      "statistics": State(jnp.float32(1e4)),
    }
    return grads, {"loss": jnp.square(params["w"]).mean()}

  learner = MetaLearner(
    lambda rng, inputs: {
      "w": jnp.zeros(2, jnp.bfloat16),
      "statistics": State(jnp.float32(0.0)),
    },
    lambda params, *_: params,
    None,
    meta_grad,
  )
  trainer = meta_trainer(learner, optax.sgd(0.1), _tasks, meta_batch=1, rng=RNG)
  state = trainer.init(KEY)
  found = inspect_step(learner, _tasks, state, meta_batch=1, rng=RNG)
  _, metrics = trainer.compile(state)[0](state, 1)
  for norm in (found.metrics["gradient_norm"][0], metrics["gradient_norm"]):
    assert norm.dtype == jnp.float32 and norm == 5.0


@pytest.fixture
def full_disk(monkeypatch):
  """While a checkpoint is written, no file can grow beyond 100 bytes."""
  manager = checkpoint.ocp.CheckpointManager
  save, before = manager.save, resource.getrlimit(resource.RLIMIT_FSIZE)

  def with_little_room(*args, **kwargs):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
      return save(*args, **kwargs)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)

  with monkeypatch.context() as patch:
    yield lambda: patch.setattr(manager, "save", with_little_room)


@pytest.mark.parametrize("must_save", [True, False])
def test_full_disk_leaves_the_last_good_checkpoint(
  must_save, tmp_path, full_disk
):
  trainer = _trainer(skip=True)
  _fit(trainer, tmp_path, 4)
  folder = tmp_path / "checkpoints"
  assert os.listdir(folder) == ["4"]
  full_disk()
  if must_save:
    with pytest.raises(checkpoint.SaveError, match="step 8 .* of step 4 is"):
      _fit(trainer, tmp_path, 8)
  else:
    assert _fit(trainer, tmp_path, 8, must_save=False).state.step == 8
  assert os.listdir(folder) == ["4"]


@pytest.mark.parametrize("must_save", [True, False])
def test_records_that_cannot_be_written(must_save, tmp_path, monkeypatch):
  monkeypatch.setattr(logging, "_open_jsonl", lambda *_: open("/dev/full", "w"))
  trainer = _trainer(skip=True)
  if must_save:
    with pytest.raises(OSError, match="No space left"):
      _fit(trainer, tmp_path)
  else:
    assert _fit(trainer, tmp_path, must_save=False).state.step == 9


def test_a_run_goes_on_after_a_full_disk(tmp_path, full_disk):
  trainer = _trainer(skip=True)
  full_disk()
  _fit(trainer, tmp_path / "full", 9, must_save=False)
  with pytest.raises(checkpoint.SaveError, match="step 4 .* there is none"):
    _fit(trainer, tmp_path / "full", 9)
