"""Kernels against numerical integrals, finite networks and numpy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.distillation import (
  kernel_ridge,
  linear_kernel,
  relu_tangent_kernel,
)

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(5, 4)), DRAW.normal(size=(3, 4))


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@functools.cache
def _kernel(num_layers):
  return jax.jit(relu_tangent_kernel(num_layers))


def _expectations(cosine):
  """E relu(u) relu(v) and P(u, v > 0) of unit normals of this correlation.

  u = r cos t, v = r cos(t - a) with E r^2 = 2, by the midpoint rule over t.
  """
  t = (np.arange(200_000) + 0.5) / 200_000 * 2 * np.pi
  u, v = np.cos(t), np.cos(t - np.arccos(np.clip(cosine, -1, 1)))
  both = (u > 0) & (v > 0)
  return 2 * (u * v * both).mean(), both.mean()


def _integrated(x, y, num_layers):
  """The tangent kernel of two inputs, its expectations being integrals."""
  own, other, covariance = x @ x / x.size, y @ y / y.size, x @ y / x.size
  tangent = covariance
  for _ in range(num_layers):
    # 2 E relu(u)^2 = E u^2: the variances stay.
    scale = np.sqrt(own * other)
    product, both = _expectations(covariance / scale)
    covariance = 2 * scale * product
    tangent = covariance + 2 * both * tangent
  return tangent


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_tangent_kernel_is_that_of_the_integrals(num_layers, float64):
  found = _kernel(num_layers)(jnp.asarray(X), jnp.asarray(Y))
  expected = [[_integrated(x, y, num_layers) for y in Y] for x in X]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def _finite_kernel(inputs, num_layers, width, draw):
  """Inner products of a random network's gradients, by backpropagation.

  Every layer is activations / sqrt(fan-in) by weights of variance 2, except for
  the first, of variance 1: S_0 has no factor 2.
  """
  hidden, weights, signs = [inputs / np.sqrt(inputs.shape[1])], [], []
  for _ in range(num_layers):
    weights.append(draw.normal(size=(hidden[-1].shape[1], width)))
    preactivations = hidden[-1] @ weights[-1]
    signs.append(preactivations > 0)
    hidden.append(np.sqrt(2 / width) * preactivations * signs[-1])
  weights.append(draw.normal(size=(width, 1)))
  back, total = np.ones((len(inputs), 1)), 0.0
  for layer in range(num_layers, -1, -1):
    total += (hidden[layer] @ hidden[layer].T) * (back @ back.T)
    if layer:
      back = np.sqrt(2 / width) * signs[layer - 1] * (back @ weights[layer].T)
  return total


@pytest.mark.parametrize("num_layers", [1, 2])
def test_tangent_kernel_is_the_mean_of_wide_networks(num_layers):
  draw, networks = np.random.default_rng(1), 400
  kernels = np.array(
    [_finite_kernel(X, num_layers, 256, draw) for _ in range(networks)]
  )
  found = np.asarray(_kernel(num_layers)(*(jnp.asarray(X, jnp.float32),) * 2))
  sigmas = kernels.std(0, ddof=1) / np.sqrt(networks)
  assert np.all(np.diag(sigmas) < 0.03 * np.diag(found))
  assert np.abs((kernels.mean(0) - found) / sigmas).max() < 4.5


def test_kernel_without_hidden_layers_is_linear():
  inputs = X.reshape(5, 2, 2)
  expected = X @ Y.T / 4
  for kernel in (linear_kernel, _kernel(0)):
    found = kernel(jnp.asarray(inputs), jnp.asarray(Y.reshape(3, 2, 2)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_parallel_and_opposite_inputs_are_the_closed_form(float64):
  """K(x, c x) = c (L + 1) |x|^2 / d; a ReLU lets one of x and -x pass."""
  x, kernel = jnp.asarray(X), _kernel(1)
  squares = (X**2).mean(1)
  found = jnp.diagonal(kernel(x, 3 * x))
  np.testing.assert_allclose(found, 3 * 2 * squares, rtol=1e-6)
  np.testing.assert_allclose(jnp.diagonal(kernel(x, -2 * x)), 0, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_tangent_kernel_is_symmetric_and_positive_definite(num_layers):
  """Of 15 inputs in 2 axes, where the linear kernel has rank 2.

  They are turned by equal angles; of an odd number, so that none is opposite to
  another: one hidden layer tells f(x) - f(-x) from no linear function.
  """
  turn = 2 * np.pi * np.arange(15) / 15
  x = np.stack([np.cos(turn), np.sin(turn)], 1) * (1 + turn[:, None])
  x = jnp.asarray(x, jnp.float32)
  gram = np.asarray(_kernel(num_layers)(x, x), np.float64)
  np.testing.assert_allclose(gram, gram.T, rtol=1e-5, atol=1e-6)
  scale = np.sqrt(np.diag(gram))
  assert np.linalg.eigvalsh(gram / np.outer(scale, scale)).min() > 1e-5
  linear = np.asarray(linear_kernel(x, x), np.float64)
  assert np.linalg.matrix_rank(linear, tol=1e-4) == 2


@pytest.mark.parametrize("x64", [False, True])
def test_gradient_at_equal_inputs_is_that_of_the_square(x64):
  """K(x, x) = (L + 1) |x|^2 / d, whatever the arc cosine's slope."""
  with jax.enable_x64(x64):
    x = jnp.asarray(X, jnp.float64 if x64 else jnp.float32)
    kernel = relu_tangent_kernel(2)
    grads = jax.jit(jax.grad(lambda x: jnp.trace(kernel(x, x))))(x)
    expected = 2 * 3 * X / 4
    tolerance = 1e-6 if x64 else 1e-3
    np.testing.assert_allclose(grads, expected, rtol=tolerance, atol=tolerance)


def test_gradient_is_that_of_central_differences(float64):
  kernel, x, y = _kernel(2), jnp.asarray(X), jnp.asarray(Y)
  found = jax.jit(jax.jacrev(lambda x: kernel(x, y).sum(1)))(x)
  for i, j in np.ndindex(X.shape):
    ends = kernel(x.at[i, j].add(1e-6), y) - kernel(x.at[i, j].add(-1e-6), y)
    np.testing.assert_allclose(
      found[:, i, j], ends.sum(1) / 2e-6, rtol=1e-6, atol=1e-8
    )


def test_zero_inputs_have_no_covariance_and_a_finite_gradient():
  x = jnp.zeros((1, 4))
  y = jnp.concatenate([x, jnp.asarray(Y, jnp.float32)])
  kernel = relu_tangent_kernel(2)
  found, grads = jax.jit(
    jax.value_and_grad(lambda x: kernel(x, y).sum(), argnums=0)
  )(x)
  np.testing.assert_allclose(found, 0, atol=1e-6)
  assert np.isfinite(grads).all()


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 10.0])
def test_ridge_regression_is_the_closed_form(ridge, float64):
  targets = DRAW.normal(size=(5, 2))
  gram, cross = X @ X.T / 4 + 1, Y @ X.T / 4 + 1
  jitter = ridge * np.diag(gram).mean() * np.eye(5)
  expected = cross @ np.linalg.solve(gram + jitter, targets)
  predict = kernel_ridge(
    lambda x, y: linear_kernel(x, y) + 1,
    jnp.asarray(X),
    jnp.asarray(targets),
    ridge,
  )
  np.testing.assert_allclose(predict(jnp.asarray(Y)), expected, rtol=1e-8)


def test_ridge_regression_without_a_ridge_interpolates(float64):
  targets = DRAW.normal(size=(5, 2))
  x, kernel = jnp.asarray(X), _kernel(2)
  for ridge, error in ((1e-9, 1e-7), (1e-3, None)):
    found = kernel_ridge(kernel, x, jnp.asarray(targets), ridge)(x)
    largest = np.abs(found - targets).max()
    assert largest < error if error else largest > 1e-4


def test_ridge_is_swept():
  x = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4)), jnp.float32)

  def predict(ridge):
    return kernel_ridge(linear_kernel, x, x[:, :2], ridge)(x)

  ridges = jnp.array([1e-2, 1.0])
  found = jax.vmap(predict)(ridges)
  np.testing.assert_allclose(found[0], predict(1e-2), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1], predict(1.0), rtol=1e-4, atol=1e-5)


def test_ridge_is_in_units_of_the_kernel():
  x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
  targets = jnp.asarray(DRAW.normal(size=(5, 2)), jnp.float32)
  for ridge in ({}, {"ridge": 0.1}):
    found, scaled = (
      kernel_ridge(
        lambda a, b, factor=factor: factor * linear_kernel(a, b),
        x,
        targets,
        **ridge,
      )(y)
      for factor in (1.0, 1e4)
    )
    np.testing.assert_allclose(scaled, found, rtol=1e-3)


@pytest.mark.parametrize("ridge", [0.0, -1e-3, float("nan")])
def test_bad_ridge_is_named(ridge):
  with pytest.raises(ValueError, match=r"^ridge=.*: must be above 0"):
    kernel_ridge(linear_kernel, jnp.asarray(X), jnp.ones((5, 1)), ridge)


def test_inputs_of_zeros_are_predicted_as_zero_and_not_nan():
  predict = kernel_ridge(linear_kernel, jnp.zeros((2, 3)), jnp.ones((2, 1)))
  np.testing.assert_array_equal(predict(jnp.ones((4, 3))), 0)


def test_targets_of_another_number_are_named():
  with pytest.raises(ValueError, match="^targets: 3 given for 2 inputs"):
    kernel_ridge(linear_kernel, jnp.ones((2, 3)), jnp.ones((3, 1)))


@pytest.mark.parametrize("size", [1e-12, 1e8])
def test_tangent_kernel_grows_with_the_square_of_the_inputs(size):
  kernel, x = relu_tangent_kernel(2), jnp.array([[1.0, 2.0], [3.0, -1.0]])
  np.testing.assert_allclose(
    kernel(size * x, size * x) / size**2, kernel(x, x), rtol=1e-5
  )
