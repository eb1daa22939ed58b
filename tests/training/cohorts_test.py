"""Models trained cohort by cohort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.training import cohort_trainer
from metajax.training.loop import NonFinite, Schedule, fit

RNG = jax.random.key(0)


def _init(rng):
  return {"w": jax.random.normal(rng, (3,))}


def _train(rng, params, mean, count):
  """What a model becomes tells its key, its start, the mean and the count."""
  w = params["w"] + jax.random.uniform(rng) + 10 * mean["w"] + count
  return {"w": w}, {"loss": w.sum()}


def _expected(num_models, cohort):
  models = np.zeros((0, 3))
  for start in range(0, num_models, cohort):
    mean = models.mean(0) if start else np.zeros(3)
    new = []
    for i in range(start, start + cohort):
      key = jax.random.fold_in(RNG, i)
      begin = np.asarray(_init(key)["w"]) + float(jax.random.uniform(key))
      new.append(begin + 10 * mean + start)
    models = np.concatenate([models, new])
  return models


def test_each_model_has_its_key_and_sees_the_mean_of_earlier_cohorts():
  trainer = cohort_trainer(_init, _train, 6, 2, rng=RNG)
  state = trainer.init(RNG)
  assert state.meta_params["w"].shape == (6, 3)
  train, _ = trainer.compile(state)
  state, metrics = train(state, 3)
  expected = _expected(6, 2)
  np.testing.assert_allclose(state.meta_params["w"], expected, rtol=1e-5)
  # The mean of the cohorts' means, which are of equal size.
  np.testing.assert_allclose(metrics["loss"], expected.sum(1).mean(), rtol=1e-5)


def test_a_run_resumes_between_cohorts(tmp_path):
  def run(cohorts, folder):
    trainer = cohort_trainer(_init, _train, 6, 2, rng=RNG)
    schedule = Schedule(cohorts, 1, 1, 1)
    folder.mkdir(exist_ok=True)
    return fit(trainer, RNG, schedule, folder, tasks_per_step=2).state

  whole = run(3, tmp_path / "whole")
  run(1, tmp_path / "parts")
  resumed = run(3, tmp_path / "parts")
  np.testing.assert_array_equal(
    whole.meta_params["w"], resumed.meta_params["w"]
  )


@pytest.mark.parametrize("cohort", [0, 4])
def test_a_cohort_must_divide_the_models(cohort):
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("tasks",))
  with pytest.raises(ValueError, match=f"cohort={cohort}: must divide"):
    cohort_trainer(_init, _train, 6, cohort, rng=RNG, mesh=mesh)


def test_models_keep_their_dtype():
  def init(rng):
    return jax.random.normal(rng, (2,), jnp.bfloat16)

  def train_model(rng, params, mean, count):
    del rng, count
    return params + mean, {"loss": jnp.zeros(())}

  trainer = cohort_trainer(init, train_model, 2, 1, rng=RNG)
  train, _ = trainer.compile(trainer.init(RNG))
  assert train(trainer.init(RNG), 2)[0].meta_params.dtype == jnp.bfloat16


def test_a_cohort_with_a_model_that_is_not_finite_is_not_taken(tmp_path):
  def train_model(rng, params, mean, count):
    w = jnp.where(count == 2, jnp.log(-1.0), 1.0)
    return params + w, {"accuracy": jnp.float32(0.0)}

  trainer = cohort_trainer(lambda rng: jnp.zeros(3), train_model, 6, 2, rng=RNG)
  with pytest.raises(NonFinite, match="step 1 is not finite"):
    fit(trainer, RNG, Schedule(3, 1, 3, 3), tmp_path, tasks_per_step=2)
  train, _ = trainer.compile(trainer.init(RNG))
  state, _ = train(trainer.init(RNG), 3)
  assert state.step == 1
  np.testing.assert_array_equal(state.meta_params[:2], np.ones((2, 3)))
  assert np.isfinite(state.meta_params).all()


def test_the_mean_of_many_models_of_float16_is_finite():
  def train_model(rng, params, mean, count):
    return params + jnp.where(count == 0, 4e4, mean), {"loss": jnp.zeros(())}

  trainer = cohort_trainer(
    lambda rng: jnp.zeros((), jnp.float16), train_model, 6, 3, rng=RNG
  )
  train, _ = trainer.compile(trainer.init(RNG))
  state, _ = train(trainer.init(RNG), 2)
  np.testing.assert_array_equal(state.meta_params, np.full(6, np.float16(4e4)))
