"""Means over the steps of a compiled loop, whatever the metrics' dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.training.state import TrainState, first_state, mean_over_steps
from metajax.types import State


def _means(metric, num_steps):
  """Means of `metric(step)`, over steps that do nothing else."""

  def step(state):
    return state._replace(step=state.step + 1), metric(state.step)

  state = TrainState(jnp.int32(0), (), ())
  train, _ = mean_over_steps(step)(state)
  return jax.device_get(train(state, num_steps)[1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("num_steps", [1_000, 20_000])
def test_the_mean_of_nineteens_is_nineteen(dtype, num_steps):
  means = _means(lambda step: {"x": jnp.asarray(19.0, dtype)}, num_steps)
  assert means["x"] == 19.0
  assert means["x"].dtype == np.float32


def test_means_of_a_million_steps_are_right_to_the_last_digits():
  """In a plain sum in float32, steps of 1/4 are lost at the end."""
  means = _means(
    lambda step: {"x": 2.3 + (step % 2), "count": step % 3}, 1_000_000
  )
  np.testing.assert_allclose(means["x"], 2.8, rtol=3e-7)
  np.testing.assert_allclose(means["count"], 1.0, rtol=1e-5)


def test_metrics_that_are_infinite_stay_so():
  means = _means(lambda step: {"x": 1.0 / (step - 1), "y": 0.0 / step}, 4)
  assert means["x"] == np.inf
  assert np.isnan(means["y"])


def test_means_without_a_step_that_counts_are_nan():
  """The first is not finite, so none is taken; or all are skipped."""

  def stuck(state):
    return state, {"x": jnp.float32(2.0)}

  def skip(state):
    new = state._replace(step=state.step + 1)
    return new, {"x": jnp.float32(0.0), "skipped": jnp.float32(1.0)}

  for step, taken in ((stuck, 0), (skip, 3)):
    state = TrainState(jnp.int32(0), (), ())
    train, _ = mean_over_steps(step)(state)
    state, means = train(state, 3)
    assert state.step == taken
    assert np.isnan(means["x"])
  assert means["skipped"] == 1.0


def test_meta_parameters_with_a_random_key_are_refused():
  """They ended in an error of a conversion, at the mean over tasks."""
  params = {"w": jnp.ones(2), "noise": State(jax.random.key(0))}
  with pytest.raises(ValueError, match=r"^meta_params: \['noise'\]\.value is"):
    first_state(optax.sgd(0.1), params)
