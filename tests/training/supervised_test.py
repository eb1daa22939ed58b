"""Supervised training against a loop in numpy, over devices and cohorts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.training import loss_of, on_changed, supervised_trainer
from metajax.types import Batch
from tests.processes import run_python

RNG, INIT_KEY = jax.random.key(0), jax.random.key(1)
BATCH = 8


def _data():
  draw = np.random.default_rng(0).normal
  x = draw(size=(20, 3)).astype(np.float32)
  y = x @ np.float32([1, -2, 3]) + 0.1 * draw(size=20).astype(np.float32)
  return {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def _loss(weights, batch, rng):
  del rng
  errors = batch["x"] @ weights - batch["y"]
  return jnp.mean(errors**2), {"bias": jnp.mean(errors)}


def _trainer(**arguments):
  return supervised_trainer(
    lambda rng: jax.random.normal(rng, (3,)),
    _loss,
    optax.sgd(0.1),
    _data(),
    **{"batch_size": BATCH, "rng": RNG, **arguments},
  )


def _indices(step):
  key = jax.random.fold_in(RNG, step)
  return np.array(
    [
      jax.random.randint(jax.random.fold_in(key, i), (), 0, 20)
      for i in range(BATCH)
    ]
  )


def test_steps_are_those_of_a_loop():
  trainer = _trainer()
  state = trainer.init(INIT_KEY)
  weights = np.float64(state.meta_params)
  train, _ = trainer.compile(state)
  state, metrics = train(state, 4)
  data = jax.tree.map(np.float64, _data())
  losses, biases = [], []
  for step in range(4):
    chosen = _indices(step)
    x, y = data["x"][chosen], data["y"][chosen]
    errors = x @ weights - y
    losses.append(np.mean(errors**2))
    biases.append(np.mean(errors))
    weights = weights - 0.1 * 2 * x.T @ errors / BATCH
  np.testing.assert_allclose(state.meta_params, weights, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(metrics["bias"], np.mean(biases), rtol=1e-4)
  assert state.step == 4


def test_batches_reach_every_example_equally():
  """Within 5 standard deviations of a binomial."""
  steps, size = 2000, 20
  data = {"one": jnp.eye(size)}
  trainer = supervised_trainer(
    lambda rng: jnp.zeros(size),
    lambda w, batch, rng: (-jnp.mean(batch["one"] @ w), {}),
    optax.sgd(float(BATCH)),
    data,
    batch_size=BATCH,
    rng=RNG,
  )
  state = trainer.init(INIT_KEY)
  train, _ = trainer.compile(state)
  counts = np.asarray(train(state, steps)[0].meta_params)
  np.testing.assert_allclose(counts.sum(), steps * BATCH, rtol=1e-4)
  p = 1 / size
  bound = 5 * np.sqrt(steps * BATCH * p * (1 - p))
  assert np.abs(counts - steps * BATCH * p).max() < bound


@pytest.mark.slow
def test_a_cohort_trains_as_its_members_do_alone():
  def init(rng):
    return jax.random.normal(rng, (2, 3))

  def loss(stack, batch, rng):
    losses, metrics = jax.vmap(_loss, (0, None, None))(stack, batch, rng)
    return losses.sum(), jax.tree.map(jnp.mean, metrics)

  cohort = supervised_trainer(
    init, loss, optax.sgd(0.1), _data(), batch_size=BATCH, rng=RNG
  )
  state = cohort.init(INIT_KEY)
  starts = np.array(state.meta_params)
  together = cohort.compile(state)[0](state, 5)[0].meta_params
  single = _trainer()
  for start, found in zip(starts, together, strict=True):
    begin = single.init(INIT_KEY)._replace(meta_params=jnp.asarray(start))
    alone = single.compile(begin)[0](begin, 5)[0].meta_params
    np.testing.assert_allclose(found, alone, rtol=1e-5)


SCRIPT = """
import sys
sys.path.insert(0, "tests/training")
import jax, numpy as np
from supervised_test import INIT_KEY, _trainer
from metajax.training import task_mesh
found = []
for devices in (jax.devices()[:1], jax.devices()):
  trainer = _trainer(mesh=task_mesh(8, devices))
  state = trainer.init(INIT_KEY)
  state, metrics = trainer.compile(state)[0](state, 5)
  found.append([*state.meta_params, metrics["loss"]])
assert len(jax.devices()) == 8
np.testing.assert_allclose(*found, rtol=1e-5)
"""


@pytest.mark.slow
def test_devices_change_no_numbers():
  run_python("-c", SCRIPT, devices=8)


# The variance over devices of what each of them draws.
DRAWS = """
import jax, jax.numpy as jnp, optax
from metajax.training import supervised_trainer
def loss(weight, batch, rng):
  drawn = jax.random.uniform(rng)
  return 0 * weight, {"mean": drawn, "square": drawn**2}
trainer = supervised_trainer(
  lambda rng: jnp.float32(1), loss, optax.sgd(0.1), jnp.zeros(4),
  batch_size=2, rng=jax.random.key(0),
)
state = trainer.init(jax.random.key(1))
_, found = trainer.compile(state)[0](state, 1)
assert found["square"] - found["mean"] ** 2 > 1e-4
"""


def test_devices_draw_different_numbers():
  """All drew the same: dropout and changed images came in equal pairs."""
  run_python("-c", DRAWS, devices=2)


def test_a_loss_that_is_not_finite_stops_training_too():
  """Its gradient is finite everywhere."""
  trainer = supervised_trainer(
    lambda rng: jnp.zeros(()),
    lambda w, batch, rng: (jnp.where(w > 2.5, jnp.inf, -w), {}),
    optax.sgd(1.0),
    {"x": jnp.zeros(BATCH)},
    batch_size=BATCH,
    rng=RNG,
  )
  state = trainer.init(INIT_KEY)
  state, metrics = trainer.compile(state)[0](state, 9)
  assert (state.step, state.meta_params, metrics["loss"]) == (3, 3.0, -1.0)


def test_a_model_and_a_plain_loss_are_named():
  trainer = functools.partial(
    supervised_trainer,
    optimizer=optax.sgd(0.1),
    data=jnp.ones((3, 1)),
    batch_size=1,
    rng=jax.random.key(0),
  )
  with pytest.raises(ValueError, match="^init_params: a MLP given, must be a"):
    trainer(MLP(1), lambda params, x, rng: (params, {}))
  plain = trainer(lambda rng: jnp.zeros(()), lambda params, x, rng: params)
  with pytest.raises(ValueError, match="^loss_fn: returned no tuple, must be"):
    plain.compile(plain.init(jax.random.key(0)))


@pytest.mark.parametrize(
  "loss_fn", [mean_squared_error, lambda params, batch: (0.0, {})]
)
def test_a_loss_of_other_arguments_is_refused(loss_fn):
  with pytest.raises(ValueError, match="^loss_fn: must take .params, examples"):
    supervised_trainer(
      lambda rng: jnp.zeros(()),
      loss_fn,
      optax.sgd(0.1),
      jnp.zeros(3),
      batch_size=1,
      rng=RNG,
    )


def test_data_of_another_form_are_refused_by_the_loss_of_a_model():
  loss = loss_of(MLP(1), mean_squared_error)
  with pytest.raises(ValueError, match="^data: a tuple given, must be .*Batch"):
    loss({}, (jnp.zeros((2, 1)), jnp.zeros((2, 1))), RNG)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match=r"first axes of \[3, 4\]"):
    supervised_trainer(
      lambda rng: jnp.zeros(()),
      _loss,
      optax.sgd(0.1),
      {"x": jnp.zeros(3), "y": jnp.zeros(4)},
      batch_size=1,
      rng=RNG,
    )


@pytest.mark.parametrize("kind", [Batch, dict])
def test_examples_are_changed_before_the_loss(kind):
  """The teacher within a loss, too, reads what the student reads."""

  def change(rng, inputs):
    return inputs + jax.random.normal(rng, inputs.shape)

  def loss(teacher, params, examples, rng):
    x = examples.inputs if kind is Batch else examples["inputs"]
    return jnp.sum((x @ params - x @ teacher) ** 2), {"x": x, "key": rng}

  x, y = jnp.arange(6.0).reshape(2, 3), jnp.zeros(2)
  examples = Batch(x, y) if kind is Batch else {"inputs": x, "labels": y}
  teacher, params = jnp.array([1.0, 2.0, 3.0]), jnp.ones(3)
  changed = on_changed(jax.tree_util.Partial(loss, teacher), change)
  value, seen = changed(params, examples, RNG)
  change_key, loss_key = jax.random.split(RNG)
  expected = change(change_key, x)
  np.testing.assert_array_equal(seen["x"], expected)
  assert (seen["key"] == loss_key).all()
  np.testing.assert_allclose(
    value, np.sum((np.float64(expected) @ [0, -1, -2]) ** 2), rtol=1e-5
  )
  # Its arrays are arguments of the program.
  (carried,) = jax.tree.leaves(changed)
  np.testing.assert_array_equal(carried, teacher)
