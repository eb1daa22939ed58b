"""Max-pooling against flax's and PyTorch's rule, and what it compiles to."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from metajax.models.conv import conv4
from metajax.models.pooling import max_pool


def _flax(x, window):
  return nn.max_pool(x, window, window)


def _images(shape, ties=False):
  numbers = np.random.default_rng(0).normal(size=shape)
  return jnp.asarray(np.round(numbers) if ties else numbers, jnp.float32)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
  "shape, window",
  [((3, 8, 6, 5), (2, 2)), ((2, 7, 5, 3), (2, 2)), ((2, 7, 9, 2), (3, 2))],
)
def test_values_and_gradients_are_flaxs_of_equal_elements_too(
  shape, window, ties
):
  x = _images(shape, ties)
  found, pull = jax.vjp(lambda x: max_pool(x, window), x)
  expected, pull_flax = jax.vjp(lambda x: _flax(x, window), x)
  np.testing.assert_array_equal(found, expected)
  cotangent = _images(found.shape)
  np.testing.assert_array_equal(pull(cotangent)[0], pull_flax(cotangent)[0])
  if ties:  # They are what the test is about.
    pooled = np.asarray(found)
    windows = np.asarray(x)[:, : pooled.shape[1] * window[0]]
    assert (windows == 1).sum() > (pooled == 1).sum()


def test_the_first_of_equal_elements_gets_the_gradient():
  x = jnp.array([[1.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
  grad = jax.grad(lambda x: max_pool(x).sum())(x)
  np.testing.assert_array_equal(grad.reshape(2, 2), [[0, 1], [0, 0]])


@pytest.mark.parametrize("place", range(4))
def test_a_window_with_a_nan_is_nan(place):
  x = _images((1, 2, 2, 1)).ravel().at[place].set(jnp.nan)
  assert np.isnan(max_pool(x.reshape(1, 2, 2, 1))).all()
  x = x.at[place].set(-jnp.inf).reshape(1, 2, 2, 1)
  np.testing.assert_array_equal(max_pool(x), x.max().reshape(1, 1, 1, 1))


@pytest.mark.slow
def test_derivatives_of_three_orders_are_those_of_finite_differences():
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 4, 2)))
    weight = jnp.arange(8.0).reshape(1, 2, 2, 2) / 8

    def loss(x):
      return (weight * jnp.tanh(max_pool(x * jnp.abs(x))) ** 2).sum()

    check_grads(loss, (x,), order=3, modes=("fwd", "rev"))


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
def test_the_lowest_of_some_channels(ties):
  x = _images((3, 8, 6, 4), ties)
  lowest = jnp.array([False, True, True, False])
  sign = jnp.where(lowest, -1.0, 1.0)
  found, pull = jax.vjp(lambda x: max_pool(x, lowest=lowest), x)
  expected, pull_flax = jax.vjp(lambda x: sign * _flax(sign * x, (2, 2)), x)
  np.testing.assert_array_equal(found, expected)
  cotangent = _images(found.shape)
  np.testing.assert_array_equal(pull(cotangent)[0], pull_flax(cotangent)[0])
  with_nan = x.at[0, 0, 0].set(jnp.nan)
  assert np.isnan(max_pool(with_nan, lowest=lowest)[0, 0, 0]).all()


def test_under_vmap_and_in_bfloat16():
  x = _images((3, 2, 4, 4, 2))
  expected = jnp.stack([_flax(one, (2, 2)) for one in x])
  np.testing.assert_array_equal(jax.vmap(max_pool)(x), expected)
  narrow = x.astype(jnp.bfloat16)
  assert max_pool(narrow[0]).dtype == jnp.bfloat16
  np.testing.assert_array_equal(max_pool(narrow[0]), _flax(narrow[0], (2, 2)))


@pytest.mark.slow
def test_no_derivative_of_a_pooled_network_scatters():
  """XLA's select-and-scatter took longer than the network around it."""
  model = conv4(3, filters=8, strided=False)
  x = _images((2, 16, 16, 3))
  params = model.init(jax.random.key(0), x)

  def loss(params):
    return (model.apply(params, x) ** 2).sum()

  def second(params):
    return jax.jvp(jax.grad(loss), (params,), (params,))

  text = jax.jit(second).lower(params).as_text()
  assert "dot_general" in text
  for name in ("select_and_scatter", "reduce_window", "scatter"):
    assert name not in text


@pytest.mark.parametrize("shape", [(1, 1, 4, 2), (4, 4, 2)])
def test_what_cannot_be_pooled_is_named(shape):
  with pytest.raises(ValueError, match=r"inputs \("):
    max_pool(jnp.zeros(shape))
