"""Running averages against sums written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.aggregation import ema, swa

MODELS = np.random.default_rng(0).normal(size=(23, 4))
START = np.full(4, 9.0)


def _run(average, models=MODELS):
  """Values after every update, all in one scan."""

  def step(state, params):
    state = average.update(params, state)
    return state, average.value(state)

  start = average.init(jnp.asarray(START, jnp.float32))
  _, values = jax.jit(lambda s, p: jax.lax.scan(step, s, p))(
    start, jnp.asarray(models, jnp.float32)
  )
  return np.asarray(values)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_debiased_ema_has_weights_that_sum_to_one(decay):
  expected = []
  for t in range(1, len(MODELS) + 1):
    weights = decay ** np.arange(t - 1, -1, -1)
    expected.append(np.average(MODELS[:t], axis=0, weights=weights))
  np.testing.assert_allclose(_run(ema(decay)), expected, rtol=1e-4, atol=1e-5)


def test_plain_ema_starts_from_the_initial_model():
  expected, value = [], START
  for model in MODELS:
    value = 0.9 * value + 0.1 * model
    expected.append(value)
  np.testing.assert_allclose(
    _run(ema(0.9, debias=False)), expected, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("start, period", [(0, 1), (5, 1), (0, 4), (3, 5)])
def test_swa_is_the_mean_of_every_period_th_model(start, period):
  values = _run(swa(start, period))
  for t in range(len(MODELS)):
    counted = MODELS[start : t + 1 : period]
    expected = counted.mean(axis=0) if t >= start else MODELS[t]
    np.testing.assert_allclose(values[t], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("average", [ema(0.9), swa(2, 3)])
def test_before_any_update_it_is_the_initial_model(average):
  state = average.init(jnp.asarray(START))
  np.testing.assert_array_equal(average.value(state), START)
  assert int(state.step) == 0


@pytest.mark.parametrize("average", [ema(0.9), swa(1, 2)])
def test_dtype_and_tree_are_kept(average):
  params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3)}
  state = average.update(params, average.init(params))
  value = average.value(state)
  assert jax.tree.map(lambda x: x.dtype, value) == {
    "w": jnp.bfloat16,
    "b": jnp.float32,
  }


@pytest.mark.parametrize(
  "build, name",
  [
    (lambda: ema(1.0), "decay=1.0"),
    (lambda: ema(-0.1), "decay=-0.1"),
    (lambda: swa(-1), "start=-1"),
    (lambda: swa(0, 0), "period=0"),
  ],
)
def test_impossible_arguments_are_named(build, name):
  with pytest.raises(ValueError, match=name):
    build()
