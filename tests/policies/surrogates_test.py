"""Derivatives of surrogates, compared with an enumeration of an MDP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.policies.surrogates import (
  SURROGATES,
  clipped,
  dice,
  exploration,
  low_variance_curvature,
  score_function,
)
from tests.policies import exact

STEP = 0.3


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _theta():
  return jnp.asarray(exact.THETA)


@functools.cache
def _gradient_of_return():
  return np.asarray(jax.jit(jax.grad(exact.expected_return))(_theta()))


@functools.cache
def _hessian_of_return():
  return np.asarray(jax.jit(jax.hessian(exact.expected_return))(_theta()))


def _baseline():
  """An arbitrary function of state and time, which must not matter."""
  return np.array([[1.0, -2.0, 0.5], [0.7, 3.0, -1.0]])[
    exact.STATES, np.arange(exact.HORIZON)
  ]


def _hessian(surrogate, advantages=exact.TO_GO):
  loss = exact.expected_surrogate(surrogate, advantages)
  return -jax.jit(jax.hessian(loss))(_theta())


def test_the_return_is_the_enumerated_one():
  """A recursion over time in numpy gives the same number."""
  policy = np.exp(exact.THETA.reshape(2, 2))
  policy /= policy.sum(1, keepdims=True)
  value = np.zeros(2)
  for _ in range(exact.HORIZON):
    value = (policy * (exact.REWARDS + exact.MOVES @ value)).sum(1)
  np.testing.assert_allclose(
    exact.expected_return(_theta()), exact.START @ value / exact.HORIZON
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SURROGATES, "clipped"])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_gradient_is_that_of_the_return(name, with_baseline):
  surrogate = {**SURROGATES, "clipped": clipped(0.2)}[name]
  advantages = exact.TO_GO - (_baseline() if with_baseline else 0.0)
  loss = exact.expected_surrogate(surrogate, advantages)
  found = jax.jit(jax.grad(loss))(_theta())
  np.testing.assert_allclose(
    -found, _gradient_of_return(), rtol=1e-10, atol=1e-12
  )


@pytest.mark.parametrize(
  "with_baseline", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_hessian_of_dice_is_that_of_the_return(with_baseline):
  advantages = exact.TO_GO - (_baseline() if with_baseline else 0.0)
  found = _hessian(dice, advantages)
  np.testing.assert_allclose(found, _hessian_of_return(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_third_derivative_of_dice_is_that_of_the_return():
  third = jax.jit(jax.jacfwd(jax.hessian(exact.expected_return)))(_theta())
  loss = exact.expected_surrogate(dice, exact.TO_GO)
  found = -jax.jit(jax.jacfwd(jax.hessian(loss)))(_theta())
  np.testing.assert_allclose(found, third, rtol=1e-9, atol=1e-12)


def test_hessians_of_the_others_lack_the_terms_that_are_named():
  first, second = jax.jit(exact.hessian_terms)(_theta())
  lvc, score = _hessian(low_variance_curvature), _hessian(score_function)
  np.testing.assert_allclose(lvc, first + second, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(score, second, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_bias_of_the_hessian_is_largest_for_the_score_function():
  expected = _hessian_of_return()

  def error(surrogate):
    return float(jnp.linalg.norm(_hessian(surrogate) - expected))

  size = float(jnp.linalg.norm(expected))
  assert error(dice) < 1e-9 * size
  assert 0.01 * size < error(low_variance_curvature) < error(score_function)


def _meta_gradient(surrogate):
  """d J(theta - STEP grad L(theta)) / d theta, all expectations exact."""
  loss = exact.expected_surrogate(surrogate, exact.TO_GO)

  def after(theta):
    return exact.expected_return(theta - STEP * jax.grad(loss)(theta))

  return jax.jit(jax.grad(after))(_theta())


@pytest.mark.slow
def test_meta_gradient_by_dice_is_that_of_the_return():
  def after(theta):
    ascent = jax.grad(exact.expected_return)(theta)
    return exact.expected_return(theta + STEP * ascent)

  expected = jax.jit(jax.grad(after))(_theta())
  # The same by finite differences.
  value, small = jax.jit(after), 1e-5 * np.eye(4)
  differences = [
    (value(_theta() + d) - value(_theta() - d)) / 2e-5 for d in small
  ]
  np.testing.assert_allclose(expected, differences, rtol=1e-6)
  np.testing.assert_allclose(_meta_gradient(dice), expected, rtol=1e-9)
  first_order = jax.jit(jax.grad(exact.expected_return))(
    _theta() + STEP * _gradient_of_return()
  )
  errors = [
    float(jnp.linalg.norm(g - expected))
    for g in (
      _meta_gradient(low_variance_curvature),
      _meta_gradient(score_function),
      first_order,
    )
  ]
  assert min(errors) > 1e-3 * float(jnp.linalg.norm(expected))


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", [low_variance_curvature, dice])
def test_off_policy_surrogate_reweights_the_actions(surrogate):
  """At a theta that did not act, DiCE still gives the change of the return."""
  behaviour = jnp.array([0.1, 0.2, -0.3, 0.0])
  loss = jax.jit(exact.expected_surrogate(surrogate, exact.TO_GO, behaviour))
  total = jax.jit(exact.expected_return)
  change = total(_theta()) - total(behaviour)
  if surrogate is dice:
    np.testing.assert_allclose(-loss(_theta()), change, rtol=1e-9)
  else:  # The ratios of earlier steps are missing.
    assert abs(-float(loss(_theta()) - loss(behaviour)) - float(change)) > 1e-3


@pytest.mark.slow
def test_clipped_surrogate_by_hand():
  log_probs = jnp.log(jnp.array([[1.5, 0.5, 1.1, 1.5, 0.5]]))
  advantages = jnp.array([[1.0, 1.0, 1.0, -1.0, -1.0]])
  mask = jnp.array([[True] * 5])
  # min(rho A, clip(rho) A): 1.2, 0.5, 1.1, -1.5, -0.8.
  found = clipped(0.2)(log_probs, jnp.zeros_like(log_probs), advantages, mask)
  np.testing.assert_allclose(found, -(1.2 + 0.5 + 1.1 - 1.5 - 0.8) / 5)
  with pytest.raises(ValueError, match="clip=0: must be"):
    clipped(0)


@pytest.mark.slow
def test_exploration_term_is_the_gradient_through_the_first_episodes():
  """An outcome of a trajectory, such as the return after adapting to it."""
  outcome = jnp.asarray(np.random.default_rng(0).normal(size=len(exact.SEEN)))
  weights = jax.jit(exact.weights)(_theta())
  mask = jnp.ones((1, exact.HORIZON), bool)

  def loss(theta):
    each = jax.vmap(lambda lp, o: exploration(lp[None], mask, o))(
      exact.log_probs(theta), outcome
    )
    return (weights * each).sum()

  total = jax.jit(jax.grad(lambda t: (exact.weights(t) * outcome).sum()))
  found = jax.jit(jax.grad(loss))(_theta())
  np.testing.assert_allclose(-found, total(_theta()), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SURROGATES, "clipped"])
def test_what_comes_after_the_end_changes_nothing(name):
  surrogate = {**SURROGATES, "clipped": clipped(0.2)}[name]
  draw = np.random.default_rng(1).normal
  new, old, found = draw(size=(3, 2, 5))
  mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
  found = np.where(mask, found, 0.0)
  both = jax.jit(jax.value_and_grad(surrogate))
  value, grad = both(new, old, found, mask)
  other, other_grad = both(np.where(mask, new, 1e3), old, found, mask)
  np.testing.assert_array_equal(value, other)
  np.testing.assert_array_equal(grad, other_grad)
  assert (np.asarray(grad)[~mask] == 0).all()
  assert np.isfinite(grad).all()


@pytest.mark.parametrize("name", [*SURROGATES, "clipped"])
def test_advantages_after_the_end_may_be_nan(name):
  surrogate = {**SURROGATES, "clipped": clipped()}[name]
  mask = jnp.array([[True, True, False]])
  logs, olds = jnp.array([[-1.0, -0.5, 0.0]]), jnp.array([[-0.9, -0.7, 0.0]])
  found, known = (
    jax.grad(surrogate)(logs, olds, jnp.array([[2.0, -1.0, last]]), mask)
    for last in (jnp.nan, 0.0)
  )
  np.testing.assert_array_equal(found, known)


@pytest.mark.parametrize("name", [*SURROGATES, "clipped"])
@pytest.mark.parametrize("place", range(4))
def test_arrays_of_other_shapes_are_not_broadcast(name, place):
  arrays = [jnp.zeros((2, 3)) for _ in range(3)] + [jnp.ones((2, 3), bool)]
  surrogate = SURROGATES.get(name, clipped())
  assert surrogate(*arrays) == 0
  for shape in ((3,), (2, 1), ()):
    other = [*arrays]
    other[place] = jnp.ones(shape, arrays[place].dtype)
    with pytest.raises(AssertionError):
      surrogate(*other)
