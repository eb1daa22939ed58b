"""The descent along estimates, against a loop over its workers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import bilevel

HORIZON, WORKERS, STEPS = 6, 3, 5
NOISE = {"sigma": 0.3, "pairs": 2}


def _estimator(name):
  begin, step = bilevel.influence_balancing()
  noise = {} if "backpropagation" in name else NOISE
  window = bilevel.of_steps(step, 2)
  return getattr(bilevel, name)(begin, window, HORIZON, **noise)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  ["truncated_backpropagation", "truncated_evolution", "persistent_evolution"],
)
def test_workers_have_staggered_loops_of_their_own(name):
  estimator = _estimator(name)
  optimizer = optax.sgd(0.01, momentum=0.5)
  descender = bilevel.descent(
    estimator, optimizer, workers=WORKERS, horizon=HORIZON
  )
  start_key, rng = jax.random.split(jax.random.key(0))
  start = descender.init(0.5, start_key)
  assert start.workers.number.tolist() == [0, 2, 4]
  run = jax.jit(descender.run, static_argnums=2)
  after, losses = run(start, rng, STEPS)
  assert int(after.step) == STEPS

  estimate = jax.jit(estimator.estimate)
  outer = jnp.float32(0.5)
  opt_state = optimizer.init(outer)
  workers = [
    estimator.init(outer, key)._replace(number=jnp.int32(number))
    for key, number in zip(
      jax.random.split(start_key, WORKERS), (0, 2, 4), strict=True
    )
  ]
  for s in range(STEPS):
    keys = jax.random.split(jax.random.fold_in(rng, s), WORKERS)
    found = [
      estimate(state, outer, key)
      for state, key in zip(workers, keys, strict=True)
    ]
    grads, each, workers = zip(*found, strict=True)
    np.testing.assert_allclose(losses[s], np.mean(each), rtol=1e-5)
    updates, opt_state = optimizer.update(sum(grads) / WORKERS, opt_state)
    outer = outer + updates
  np.testing.assert_allclose(after.outer, outer, rtol=1e-5)
  assert abs(outer - 0.5) > 1e-3


@pytest.mark.parametrize(
  "name",
  ["truncated_evolution", "persistent_evolution", "noise_reuse_evolution"],
)
def test_a_worker_that_starts_within_a_loop_has_noise(name):
  estimator = getattr(bilevel, name)(
    lambda rng: jnp.zeros(()),
    lambda inner, outer, rng: (inner, 3 * outer),
    HORIZON,
    sigma=0.3,
    pairs=1000,
  )
  descender = bilevel.descent(
    estimator, optax.sgd(0.1), workers=WORKERS, horizon=HORIZON
  )
  workers = descender.init(0.5, jax.random.key(0)).workers
  for w in range(WORKERS):
    state = jax.tree.map(lambda x: x[w], workers)  # noqa: B023
    slope, _, _ = estimator.estimate(state, jnp.float32(0.5), jax.random.key(1))
    # 5 standard errors of 3 e^2 / sigma^2.
    assert abs(slope - 3) < 5 * 3 * np.sqrt(2 / 1000)


@pytest.mark.slow
def test_calls_of_any_lengths_end_alike():
  descender = bilevel.descent(
    _estimator("persistent_evolution"),
    optax.adam(0.01),
    workers=WORKERS,
    horizon=HORIZON,
  )
  rng = jax.random.key(1)
  start = descender.init(0.5, rng)
  whole, losses = descender.run(start, rng, STEPS)
  first, early = descender.run(start, rng, 2)
  parts, late = descender.run(first, rng, STEPS - 2)
  np.testing.assert_array_equal(parts.outer, whole.outer)
  np.testing.assert_array_equal([*early, *late], losses)


def test_bad_numbers_of_a_descent_are_named():
  estimator = _estimator("truncated_backpropagation")
  for name in "workers", "horizon":
    with pytest.raises(ValueError, match=f"{name}=0: must be 1 or more"):
      bilevel.descent(estimator, optax.sgd(0.1), **{name: 0})
  descender = bilevel.descent(estimator, optax.sgd(0.1))
  with pytest.raises(ValueError, match="outer is int..; must be real floating"):
    descender.init(np.arange(3), jax.random.key(0))


def _state_of(optimizer, outer=0.5):
  descender = bilevel.descent(
    _estimator("truncated_backpropagation"), optimizer
  )
  return descender, descender.init(outer, jax.random.key(0))


def test_what_is_no_optimizer_and_no_number_of_steps_is_named():
  with pytest.raises(ValueError, match="^optimizer=0.1: must be an optimizer"):
    _state_of(0.1)
  descender, state = _state_of(optax.sgd(0.1))
  for steps in (-1, 1.5):
    with pytest.raises(ValueError, match=f"^num_steps={steps}: must be"):
      descender.run(state, jax.random.key(1), steps)


def test_an_optimizer_that_reads_the_loss_gets_it():
  descender, state = _state_of(optax.polyak_sgd(0.1))
  after, losses = descender.run(state, jax.random.key(1), 2)
  assert np.isfinite(losses).all() and after.outer != 0.5


@pytest.mark.parametrize(
  "name", ["backpropagation", "truncated_backpropagation"]
)
def test_integers_have_no_derivative(name):
  estimator = _estimator(name)
  key = jax.random.key(0)
  state = estimator.init(jnp.int32(1), key)
  with pytest.raises(ValueError, match="^outer is int32; must be real"):
    estimator.estimate(state, jnp.int32(1), key)
