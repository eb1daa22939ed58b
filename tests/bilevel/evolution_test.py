"""Estimators of gradients, against smoothed gradients in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import bilevel
from metajax.bilevel import balancing

SIGMA, OUTER, STEPS, LENGTH = 0.3, 0.5, 200, 10
HORIZON = STEPS // LENGTH


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.slow
def test_antithetic_estimate_is_the_smoothed_gradient():
  """Of x' A x / 2 + b' x it is A x + b, with a known covariance, and of a sum
  of cubes 3 x^2 + 3 sigma^2."""
  draw = np.random.default_rng(0).normal
  a, b, x = draw(size=(3, 3)), draw(size=3), draw(size=3)
  a = a + a.T

  def quadratic(x, rng):
    del rng
    return x @ a @ x / 2 + b @ x

  number = 20_000
  keys = jax.random.split(jax.random.key(0), number)

  def estimates(loss_fn):
    gradient = bilevel.antithetic(loss_fn, SIGMA, 1)
    return np.asarray(jax.jit(jax.vmap(lambda k: gradient(x, k)[0]))(keys))

  def assert_mean(found, expected):
    error = found.std(0, ddof=1) / np.sqrt(number)
    assert (np.abs(found.mean(0) - expected) < 4 * error).all()

  found, exact = estimates(quadratic), a @ x + b
  assert_mean(found, exact)
  # Of z (z g) with z of N(0, I), by Isserlis' theorem.
  covariance = exact @ exact * np.eye(3) + np.outer(exact, exact)
  np.testing.assert_allclose(
    np.cov(found.T), covariance, atol=0.05 * exact @ exact
  )
  cubes = estimates(lambda x, rng: (x**3).sum())
  assert_mean(cubes, 3 * x**2 + 3 * SIGMA**2)


def _problem():
  begin, step = balancing.influence_balancing()
  return begin, bilevel.of_steps(step, LENGTH), HORIZON


@functools.cache
def _of_loops(name, loops=400):
  """The mean estimate of a loop, of many loops."""
  noise = {} if "backpropagation" in name else {"sigma": SIGMA, "pairs": 4}
  estimator = getattr(bilevel, name)(*_problem(), **noise)
  whole = name in ("backpropagation", "evolution")

  def one(rng):
    init_key, key = jax.random.split(rng)

    def step(state, key):
      grads, loss, state = estimator.estimate(state, OUTER, key)
      return state, (grads, loss)

    keys = jax.random.split(key, 1 if whole else HORIZON)
    state = estimator.init(OUTER, init_key)
    return jax.tree.map(jnp.mean, jax.lax.scan(step, state, keys)[1])

  return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), loops))


def _exact():
  return balancing.exact_gradient(OUTER, STEPS)


def test_backpropagation_is_exact_and_truncation_has_the_wrong_sign():
  grads, _ = _of_loops("backpropagation", 2)
  np.testing.assert_allclose(grads, _exact(), rtol=1e-9)
  grads, _ = _of_loops("truncated_backpropagation", 2)
  assert (np.sign(grads) == -np.sign(_exact())).all()


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["evolution", "persistent_evolution", "noise_reuse_evolution"]
)
def test_evolution_through_the_loop_is_unbiased(name):
  """The loss is a quadratic of all noise, so smoothing adds nothing."""
  grads, _ = map(np.asarray, _of_loops(name))
  error = grads.std(ddof=1) / np.sqrt(len(grads))
  assert abs(grads.mean() - _exact()) < 4 * error
  # So precise that a biased estimate would be seen.
  assert error < 0.2 * abs(_exact())


@pytest.mark.slow
def test_truncated_evolution_is_truncated_backpropagation_with_noise():
  grads, losses = map(np.asarray, _of_loops("truncated_evolution"))
  error = grads.std(ddof=1) / np.sqrt(len(grads))
  biased, plain = _of_loops("truncated_backpropagation", 2)
  assert abs(grads.mean() - biased[0]) < 4 * error
  assert abs(grads.mean() - _exact()) > 20 * error
  np.testing.assert_allclose(losses, plain[0], rtol=1e-9)


@pytest.mark.slow
def test_a_loop_begins_anew_after_its_horizon():
  """Without effect of the noise, each loop has the losses of the first."""
  begin, step = balancing.influence_balancing()
  for name in ("persistent_evolution", "noise_reuse_evolution"):
    estimator = getattr(bilevel, name)(begin, step, 3, sigma=1e-9, pairs=2)
    state = estimator.init(OUTER, jax.random.key(0))
    losses = []
    for key in jax.random.split(jax.random.key(1), 6):
      _, loss, state = jax.jit(estimator.estimate)(state, OUTER, key)
      losses.append(loss)
    assert state.number == 0
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-6)
    assert not np.allclose(losses[0], losses[1])


@pytest.mark.slow
def test_window_of_training_is_that_of_the_inner_loop():
  """Its gradient by full backpropagation is that of unrolling."""

  def inner_loss(params, outer, step):
    return jnp.square(params - jnp.exp(outer) * (1 + step % 2)).sum()

  def outer_loss(params, outer):
    del outer
    return jnp.square(params - 2).sum()

  sgd, params = optax.sgd(0.1), np.zeros(2)
  solver = bilevel.unrolled(inner_loss, sgd, 6)
  state = solver.init(params, OUTER)
  window = bilevel.of_training(inner_loss, sgd, 6, outer_loss)
  estimator = bilevel.backpropagation(lambda rng: state, window, 1)
  grads, loss, _ = estimator.estimate((), OUTER, jax.random.key(0))
  found = bilevel.hypergradient(solver, outer_loss)(state, OUTER)
  np.testing.assert_allclose(grads, found.grads, rtol=1e-12)
  np.testing.assert_allclose(loss, found.value, rtol=1e-12)


def test_bad_numbers_of_estimators_are_named():
  begin, step = balancing.influence_balancing()
  with pytest.raises(ValueError, match="sigma=0: must be above 0"):
    bilevel.evolution(begin, step, 3, sigma=0, pairs=2)
  with pytest.raises(ValueError, match="pairs=0: must be 1 or more"):
    bilevel.persistent_evolution(begin, step, 3, sigma=1, pairs=0)
  with pytest.raises(ValueError, match="horizon=0: must be 1 or more"):
    bilevel.truncated_backpropagation(begin, step, 0)
  with pytest.raises(ValueError, match="positive=23: must be 1 to 22"):
    balancing.influence_balancing(23)
  vector = bilevel.antithetic(lambda outer, rng: outer, 1.0, 2)
  with pytest.raises(ValueError, match=r"loss: has the shape \(3,\); must be"):
    jax.eval_shape(vector, np.ones(3), jax.random.key(0))
