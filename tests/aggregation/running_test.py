"""Running averages against sums written out in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.aggregation import averaging, ema, recent, swa
from metajax.types import State

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
  with pytest.raises(ValueError, match="count=0: must be 1 or more"):
    recent(0, 1)
  with pytest.raises(ValueError, match="period=0: must be 1 or more"):
    recent(1, 0)


def test_recent_writes_one_model_a_step_whatever_it_keeps():
  count, size = 64, 1000
  keep = recent(count, period=3)
  params = jnp.zeros(size)
  step = jax.jit(keep.update, donate_argnums=1)
  cost = step.lower(params, keep.init(params)).compile().cost_analysis()
  assert cost["bytes accessed"] < 10 * params.nbytes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("name", ["ema", "swa"])
def test_averages_do_not_stand_still(name, dtype):
  """Steps of the average are far below the rounding of the average."""
  average, count = {"ema": (ema(0.9999), 4000), "swa": (swa(), 4000)}[name]
  models = np.asarray(jnp.linspace(1, 2, count).astype(dtype), np.float64)
  if name == "ema":
    weights = 0.9999 ** np.arange(count - 1, -1, -1)
    expected = np.average(models, weights=weights)
  else:
    expected = models.mean()
  start = average.init(jnp.zeros((), dtype))
  models = jnp.asarray(models, dtype)
  state = jax.jit(
    lambda s, p: jax.lax.scan(lambda s, p: (average.update(p, s), None), s, p)
  )(start, models)[0]
  value = average.value(state)
  assert value.dtype == dtype
  assert abs(float(value) - expected) <= float(jnp.finfo(dtype).eps)
  # What is kept is right to far more digits than the dtype has.
  kept = np.float64(state.average) + np.float64(state.rest)
  np.testing.assert_allclose(kept, expected, rtol=2e-6)


@pytest.mark.parametrize("decay", [0.999999, 0.9999999])
@pytest.mark.parametrize("debias", [True, False])
def test_ema_at_decays_near_one(decay, debias):
  average = ema(decay, debias=debias)
  state = average.init(jnp.asarray(START, jnp.float32))
  models = np.float64(np.float32(MODELS))
  update = jax.jit(average.update)
  value = np.zeros(4) if debias else START
  for model in models:
    state = update(jnp.asarray(model, jnp.float32), state)
    value = decay * value + (1 - decay) * model
  weight = -np.expm1(len(models) * np.log(decay))
  expected = value / weight if debias else value
  kept = np.float64(state.average) + np.float64(state.rest)
  if debias:
    np.testing.assert_allclose(kept, expected, rtol=1e-5)
  else:  # It moved by less than float32 shows.
    np.testing.assert_allclose(kept - START, expected - START, rtol=1e-5)


def test_swa_before_its_start_is_exactly_the_newest_model():
  average = swa(start=3)
  state = average.init(jnp.float32(1e8))
  for model in (1e-3, 7e7, 2e-3):
    state = average.update(jnp.float32(model), state)
    assert average.value(state) == jnp.float32(model)
  # The first model that counts, and the mean of two.
  state = average.update(jnp.float32(5.0), state)
  assert average.value(state) == 5.0
  assert average.value(average.update(jnp.float32(8.0), state)) == 6.5


@pytest.mark.parametrize("average", [ema(0.9), swa(), recent(2, 1)])
def test_parameters_and_their_average_can_both_be_donated(average):
  params = {"w": jnp.ones(3)}
  step = jax.jit(lambda p, s: (p, average.update(p, s)), donate_argnums=(0, 1))
  params, state = step(params, average.init(params))
  np.testing.assert_array_equal(params["w"], np.ones(3))


def test_decays_can_be_swept():
  params = jnp.asarray(MODELS[:2], jnp.float32)

  def value(decay):
    average = ema(decay)
    state = average.init(jnp.zeros(4))
    for p in params:
      state = average.update(p, state)
    return average.value(state)

  decays = np.array([0.0, 0.5, 0.99], np.float32)
  expected = [
    np.average(MODELS[:2], axis=0, weights=[d, 1]) for d in np.float64(decays)
  ]
  np.testing.assert_allclose(jax.vmap(value)(decays), expected, rtol=1e-5)


@pytest.mark.parametrize("average", [ema(0.9), swa()])
def test_counts_are_the_newest(average):
  state = average.init({"w": jnp.ones(2), "count": jnp.int32(3)})
  state = average.update({"w": jnp.zeros(2), "count": jnp.int32(4)}, state)
  assert average.value(state)["count"] == 4


@pytest.mark.parametrize("average", [ema(0.9), swa(), recent(2, 1)])
def test_random_keys_in_state_are_those_of_the_newest_model(average):
  """They have no mean, and were a TypeError of JAX."""
  models = [
    {"w": jnp.full(2, float(i)), "key": State(jax.random.key(i))}
    for i in (1, 2)
  ]
  state = average.init(models[0])
  for model in models:
    state = average.update(model, state)
  value = average.value(state)
  newest = jax.random.key_data(models[1]["key"].value)
  found = jax.random.key_data(value["key"].value).reshape(-1, 2)[-1]
  np.testing.assert_array_equal(found, newest)
  assert 1 < jnp.ravel(value["w"])[-1] <= 2
