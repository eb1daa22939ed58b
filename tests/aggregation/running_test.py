"""Running averages against sums written out in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.aggregation import averaging, ema, recent, swa

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


def test_an_optimizer_keeps_the_averages_of_the_parameters_it_makes():
  averages = {"ema": ema(0.9), "swa": swa(start=1)}
  optimizer = averaging(optax.adam(0.1), averages)
  plain = optax.adam(0.1)
  params = other = {"w": jnp.array([1.0, -2.0])}
  state, plain_state = optimizer.init(params), plain.init(params)
  expected = {name: a.init(params) for name, a in averages.items()}
  for step in range(4):
    grads = jax.tree.map(lambda w, k=step: w + k, params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    updates, plain_state = plain.update(grads, plain_state, other)
    other = optax.apply_updates(other, updates)
    expected = {k: averages[k].update(other, v) for k, v in expected.items()}
  chex.assert_trees_all_close((params, state.averages), (other, expected))
  with pytest.raises(ValueError, match="params: averaging needs them"):
    optimizer.update(grads, state)


def test_recent_models_are_the_newest_of_every_period():
  keep = recent(count=2, period=3)
  state = keep.init(jnp.float32(0))
  seen = []
  for step in range(1, 11):
    state = keep.update(jnp.float32(step), state)
    seen.append(keep.value(state).tolist())
  assert seen[1] == [0, 0]
  assert seen[2] == seen[4] == [0, 3]
  assert seen[9] == [6, 9]
  with pytest.raises(ValueError, match="count=0, period=1: must be at least"):
    recent(0, 1)
