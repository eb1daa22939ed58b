"""Training and evaluation on what the host reads equal those without it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.evaluation import evaluator
from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.training import TrainState, meta_trainer, task_mesh
from metajax.types import Stream
from tests.processes import run_python
from tests.slow import slow_but

BATCH, RNG = 6, jax.random.key(1)
FAMILY = sinusoid(2, 3)


def _stream(read=None, family=FAMILY):
  """A stream whose host draws whole tasks; it notes their numbers."""
  draw = jax.jit(family)

  def ahead(key_of, numbers):
    for number in numbers:
      if read is not None:
        read.append(number)
      yield jax.device_get(draw(key_of(number)))

  return Stream(family, ahead, lambda data, rng: data)


def _learner(loss=mean_squared_error):
  return maml(MLP(1, (4,)), loss, optax.sgd(0.1), 1)


def _trained(tasks, calls=(2, 3), *, rng=RNG, init=None, state=None, **options):
  """Metrics of each call, and the state at the end."""
  trainer = meta_trainer(
    options.pop("learner", _learner()),
    options.pop("optimizer", optax.adam(0.05)),
    tasks,
    meta_batch=BATCH,
    rng=rng,
    **options,
  )
  if state is None:
    state = trainer.init(jax.random.key(2) if init is None else init)
  train, _ = trainer.compile(state)
  metrics = []
  for steps in calls:
    state, found = train(state, steps)
    metrics.append(jax.device_get(found))
  return jax.device_get(state), metrics


def _assert_close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    one,
    other,
  )


@pytest.mark.slow
@pytest.mark.parametrize("task_chunk", slow_but([4], [1, 4, 6]))
def test_training_is_that_without_a_stream(task_chunk):
  read = []
  found = _trained(_stream(read), task_chunk=task_chunk)
  _assert_close(found, _trained(FAMILY, task_chunk=task_chunk))
  assert read[-5 * BATCH :] == list(range(5 * BATCH))  # Each task once.


@pytest.mark.slow
def test_seeds_train_together_as_without_a_stream():
  rng, init = jax.random.split(jax.random.key(5)), jax.random.split(RNG)
  options = {"rng": rng, "init": init, "task_chunk": 3}
  _assert_close(_trained(_stream(), **options), _trained(FAMILY, **options))


@pytest.mark.slow
def test_training_goes_on_from_any_state_with_the_same_bits():
  whole, _ = _trained(_stream(), (5,))
  half, _ = _trained(_stream(), (2,))
  state = TrainState(*jax.tree.map(jnp.asarray, tuple(half)))
  read = []
  again, _ = _trained(_stream(read), (1, 2), state=state)
  jax.tree.map(np.testing.assert_array_equal, again, whole)
  assert read[0] == 2 * BATCH
  # A state of before is read anew.
  trainer = meta_trainer(
    _learner(), optax.adam(0.05), _stream(), meta_batch=BATCH, rng=RNG
  )
  state = trainer.init(jax.random.key(2))
  train, _ = trainer.compile(state)
  kept = jax.tree.map(np.asarray, state)
  ends = [
    jax.device_get(train(jax.tree.map(jnp.asarray, kept), 3)[0])
    for _ in range(2)
  ]
  jax.tree.map(np.testing.assert_array_equal, *ends)


def _bad(predictions, targets):
  """A loss that is not finite in about one task of 30."""
  loss = mean_squared_error(predictions, targets)
  return jnp.where(targets.ravel()[0] > 3.9, jnp.nan, loss)


@pytest.mark.slow
@pytest.mark.parametrize("skip", slow_but([False], [True, False]))
def test_steps_that_are_not_finite_are_those_without_a_stream(skip):
  options = {"learner": _learner(_bad), "skip_non_finite": skip}
  found = _trained(_stream(), (12,), **options)
  expected = _trained(FAMILY, (12,), **options)
  _assert_close(found, expected)
  assert found[0].step == (12 if skip else expected[0].step)
  assert expected[0].step < 12 or 0 < expected[1][0]["skipped"] < 1


@pytest.mark.slow
def test_optimizers_that_evaluate_elsewhere_have_the_same_data():
  """A line search computes the loss again, at other parameters."""
  optimizer = optax.lbfgs(memory_size=2)
  options = {"optimizer": optimizer, "task_chunk": 6}
  found = _trained(_stream(), (2,), **options)
  _assert_close(found[1], _trained(FAMILY, (2,), **options)[1])


def test_scores_are_those_without_a_stream():
  learner = _learner()
  params = learner.init(RNG, jnp.zeros((2, 1)))
  read = []
  scores = [
    evaluator(
      learner,
      tasks,
      {"mse": mean_squared_error},
      RNG,
      num_tasks=10,
      task_chunk=4,
    )
    for tasks in (_stream(read), FAMILY)
  ]
  found, expected = (score(params)["mse"] for score in scores)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert found.shape == (10,) and read == list(range(12))
  np.testing.assert_array_equal(scores[0](params)["mse"], found)


def test_a_stream_is_for_one_process(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="several processes cannot do: give --n"):
    meta_trainer(
      *[_learner(), optax.sgd(0.1), _stream()], meta_batch=BATCH, rng=RNG
    )


@pytest.mark.slow
def test_devices_share_what_is_read():
  run_python(__file__, devices=3)


def _check_devices():
  """On three devices as on one, the steps are those without a stream.

  (That three devices take the steps of one is tested for trainers.)
  """
  assert task_mesh(BATCH).size == 3
  for rng in (RNG, jax.random.split(RNG)):
    for mesh in (task_mesh(BATCH), task_mesh(BATCH, jax.devices()[:1])):
      streamed, held = (
        # The host's draws round differently, which Adam would magnify.
        _trained(tasks, rng=rng, init=rng, mesh=mesh, optimizer=optax.sgd(1e-3))
        for tasks in (_stream(), FAMILY)
      )
      _assert_close(streamed, held)


if __name__ == "__main__":
  _check_devices()
