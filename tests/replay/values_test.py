"""Targets, priorities and weights against the papers' formulas in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metajax.replay import (
  importance_weights,
  n_step_double_q,
  sequence_priority,
  signed_hyperbolic,
  signed_parabolic,
)

EPS = 1e-3
FLOAT32_EPS = np.finfo(np.float32).eps
MANY = settings(deadline=None, max_examples=50, derandomize=True)
# Of either sign and of all sizes from 1e-6 to 1e6.
NUMBERS = hnp.arrays(
  np.float32,
  16,
  elements=st.builds(
    lambda sign, power: np.float32(sign * 10**power),
    st.sampled_from([-1.0, 1.0]),
    st.floats(-6, 6),
  ),
)
squash, expand = jax.jit(signed_hyperbolic), jax.jit(signed_parabolic)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _h(x, eps=EPS):
  """As Pohlen et al. write it."""
  return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def _h_inverse(x, eps=EPS):
  root = np.sqrt(1 + 4 * eps * (np.abs(x) + 1 + eps))
  return np.sign(x) * (((root - 1) / (2 * eps)) ** 2 - 1)


@pytest.mark.slow
@MANY
@given(NUMBERS, st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_rescaling_is_the_papers(x, eps):
  close = functools.partial(
    np.testing.assert_allclose, rtol=8 * FLOAT32_EPS, atol=1e-12
  )
  close(squash(x, eps), _h(np.float64(x), eps))
  close(expand(x, eps), _h_inverse(np.float64(x), eps))


@MANY
@given(NUMBERS, st.sampled_from([1e-2, 1e-3, 0.0]))
def test_rescalings_undo_each_other_at_all_sizes(x, eps):
  """The papers' forms lose all digits of small numbers in float32."""
  close = functools.partial(
    np.testing.assert_allclose, desired=x, rtol=8 * FLOAT32_EPS
  )
  close(expand(squash(x, eps), eps))
  close(squash(expand(x, eps), eps))


def test_rescaling_without_the_linear_part():
  x = np.array([-8.0, -3.0, 0.0, 0.21, 3.0, 99.0], np.float32)
  y = np.array([-2.0, -1.0, 0.0, 0.1, 1.0, 9.0], np.float32)
  np.testing.assert_allclose(signed_hyperbolic(x, 0.0), y, rtol=1e-6)
  np.testing.assert_allclose(signed_parabolic(y, 0.0), x, rtol=1e-6)


@pytest.mark.parametrize("eps", [EPS, 0.0])
def test_zero_stays_zero_with_the_slope_of_its_neighbours(eps):
  value, slope = jax.value_and_grad(signed_hyperbolic)(0.0, eps)
  assert value == 0
  np.testing.assert_allclose(slope, 0.5 + eps, rtol=1e-6)
  value, slope = jax.value_and_grad(signed_parabolic)(0.0, eps)
  assert value == 0
  np.testing.assert_allclose(slope, 1 / (0.5 + eps), rtol=1e-6)


def _targets(rewards, discounts, online, target, n, eps):
  """One target, one reward at a time, as R2D2's equation sums them."""
  found = []
  for t in range(len(rewards)):
    total, product, place = 0.0, 1.0, t
    while place < min(t + n, len(rewards)):
      total += product * rewards[place]
      product *= discounts[place]
      place += 1
    value = target[place][np.argmax(online[place])]
    total += product * (value if eps is None else _h_inverse(value, eps))
    found.append(total if eps is None else _h(total, eps))
  return np.array(found)


@pytest.mark.parametrize("eps", [None, EPS])
@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_targets_equal_a_plain_loop(n, eps, float64):
  """Over tasks that end anywhere, and with more steps than are left."""
  rng = np.random.default_rng(n)
  batch, length = 24, 8
  rewards = 3 * rng.normal(size=(batch, length))
  discounts = rng.uniform(0.5, 1, size=(batch, length))
  discounts *= rng.random((batch, length)) > 0.25
  online, target = 4 * rng.normal(size=(2, batch, length + 1, 3))
  assert 0 < np.sum(discounts == 0) < discounts.size
  targets = functools.partial(n_step_double_q, n=n, eps=eps)
  found = jax.jit(jax.vmap(targets))(rewards, discounts, online, target)
  assert found.dtype == jnp.float64
  for i in range(batch):
    expected = _targets(rewards[i], discounts[i], online[i], target[i], n, eps)
    np.testing.assert_allclose(found[i], expected, rtol=1e-9, atol=1e-12)


def test_online_network_chooses_and_target_network_tells():
  online = jnp.array([[0.0, 0.0], [5.0, 1.0], [1.0, 5.0]])
  target = jnp.array([[0.0, 0.0], [10.0, 70.0], [90.0, 20.0]])
  rewards, discounts = jnp.array([1.0, 2.0]), jnp.array([0.5, 1.0])
  one, two = (
    n_step_double_q(rewards, discounts, online, target, n, eps=None)
    for n in (1, 2)
  )
  np.testing.assert_allclose(one, [1 + 0.5 * 10, 2 + 20])
  np.testing.assert_allclose(two, [1 + 0.5 * (2 + 20), 2 + 20])


def test_nothing_counts_after_a_task_is_over():
  rewards = jnp.array([1.0, 2.0, 50.0, 60.0])
  discounts = jnp.array([0.5, 0.0, 1.0, 1.0])
  q = 100.0 * jnp.ones((5, 2))
  found = n_step_double_q(rewards, discounts, q, q, 3, eps=None)
  np.testing.assert_allclose(found[:2], [1 + 0.5 * 2, 2])


@pytest.mark.parametrize("eps", [None, EPS])
def test_targets_give_no_gradient(eps):
  rng = np.random.default_rng(0)
  rewards, discounts = np.float32(rng.random((2, 5)))
  online, target = np.float32(rng.random((2, 6, 3)))
  grads = jax.jit(
    jax.grad(lambda *x: n_step_double_q(*x, 2, eps=eps).sum(), (0, 1, 2, 3))
  )(rewards, discounts, online, target)
  for grad in grads:
    np.testing.assert_array_equal(grad, 0)


def test_priority_mixes_the_largest_error_and_the_mean():
  errors = jnp.array([[100.0, -4.0, 1.0, 1.0], [0.0, 0.0, 0.0, -8.0]])
  weights = jnp.array([[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
  for eta, expected in (
    (1.0, [4, 8]),
    (0.0, [2, 2]),
    (0.9, [0.9 * 4 + 0.1 * 2, 0.9 * 8 + 0.1 * 2]),
  ):
    found = sequence_priority(errors, weights, eta)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_priority_of_nothing_is_zero():
  found = sequence_priority(jnp.ones(3), jnp.zeros(3))
  np.testing.assert_array_equal(found, 0)


def test_importance_weights_by_hand():
  probabilities = jnp.array([1 / 4, 1 / 16, 1 / 64])
  for exponent, expected in (
    (1.0, [1 / 16, 1 / 4, 1]),
    (0.5, [1 / 4, 1 / 2, 1]),
    (0.0, [1, 1, 1]),
  ):
    found = importance_weights(probabilities, jnp.int32(64), exponent)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_cannot_be_drawn_has_no_weight():
  """A probability of 0 was NaN for the whole batch."""
  found = importance_weights(jnp.array([0.0, 0.5, 0.25]), 4, 0.5)
  np.testing.assert_allclose(found, [0.0, 0.5**0.5, 1.0], rtol=1e-6)
  nothing = importance_weights(jnp.zeros(2), 4, 0.5)
  np.testing.assert_array_equal(nothing, 0)
  with pytest.raises(ValueError, match="^probabilities="):
    importance_weights(jnp.array([-0.1, 1.1]), 4, 0.5)
  with pytest.raises(ValueError, match="^exponent=-1"):
    importance_weights(jnp.ones(2), 4, -1)


def test_an_error_that_does_not_count_may_be_anything():
  found = sequence_priority(jnp.array([jnp.nan, 2.0]), jnp.array([0.0, 1.0]))
  assert found == 2.0
  with pytest.raises(ValueError, match="^eta=3"):
    sequence_priority(jnp.ones(2), jnp.ones(2), 3.0)
  with pytest.raises(ValueError, match="^weights of shape"):
    sequence_priority(jnp.ones((2, 3)), jnp.ones(3))


@pytest.mark.parametrize(
  "name, shape",
  [
    ("rewards", (2, 1)),
    ("discounts", ()),
    ("discounts", (1,)),
    ("online_q", (2, 3)),
    ("online_q", (4, 3)),
    ("target_q", (3, 1)),
    ("target_q", (2, 3)),
  ],
)
def test_targets_of_arrays_that_do_not_fit_are_named(name, shape):
  """Two steps and two values would broadcast."""
  arrays = {
    "rewards": jnp.ones(2),
    "discounts": jnp.ones(2),
    "online_q": jnp.ones((3, 3)),
    "target_q": jnp.ones((3, 3)),
  }
  with pytest.raises(ValueError, match="of shape"):
    n_step_double_q(**{**arrays, name: jnp.ones(shape)}, n=1)
  n_step_double_q(**arrays, n=1)


def test_bytes_and_float16_do_not_overflow():
  found = signed_hyperbolic(jnp.array([255], jnp.uint8))
  np.testing.assert_allclose(found, 15 + 0.255, rtol=1e-6)
  rewards, values = jnp.ones(300, jnp.bfloat16), jnp.zeros((301, 1))
  found = n_step_double_q(rewards, rewards, values, values, 300, eps=None)
  np.testing.assert_array_equal(found, np.arange(300, 0, -1))
  errors = jnp.full(2000, 100, jnp.float16)
  found = sequence_priority(errors, jnp.ones_like(errors), 0.0)
  np.testing.assert_allclose(found, 100)
