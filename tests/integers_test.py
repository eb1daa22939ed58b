"""Integers, such as pixels in uint8, are the numbers that they are as floats.

Squares, products and differences of integers wrap around, those of uint8 at
256.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import attention_descent, linear_attention, regressors
from metajax.distillation import (
  kernel_ridge,
  linear_kernel,
  relu_tangent_kernel,
)
from metajax.learners import cosine, nearest_mean
from metajax.losses import mean_squared_error
from metajax.types import Batch

PIXELS = np.array([[200, 100], [250, 3], [0, 30], [90, 255]], np.uint8)
LABELS = np.array([0, 1, 0, 1])
TARGETS = np.array([[1.0], [2.0], [0.5], [3.0]], np.float32)


def _by_head(head):
  return lambda x: head.predict(head.fit(x, LABELS), x)


def _by_learner(learner):
  def predict(x):
    params = learner.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + 1e-6, params)
    support = Batch(x, TARGETS)
    return learner.predict(learner.adapt(params, support, None), x)

  return predict


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize(
  "function",
  {
    "linear_kernel": lambda x: linear_kernel(x, x),
    "tangent_kernel": lambda x: relu_tangent_kernel()(x, x),
    "kernel_ridge": lambda x: kernel_ridge(linear_kernel, x, TARGETS)(x),
    "least_squares": lambda x: regressors.least_squares(Batch(x, TARGETS), x),
    "neighbours": lambda x: regressors.nearest_neighbours(2)(
      Batch(x, TARGETS), x
    ),
    "nearest_mean": _by_head(nearest_mean(2)),
    "cosine": _by_head(cosine(2)),
    "linear_attention": _by_learner(linear_attention(mean_squared_error)),
    "descent": _by_learner(attention_descent(mean_squared_error)),
  }.items(),
  ids=lambda pair: pair[0],
)
def test_integers_are_what_they_are_as_floats(function, dtype):
  _, f = function
  x = PIXELS.astype(dtype)
  found, wanted = f(jnp.asarray(x)), f(jnp.asarray(x, jnp.float32))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_kernel_of_pixels_is_that_of_numpy():
  wanted = PIXELS.astype(float) @ PIXELS.T.astype(float) / 2
  np.testing.assert_allclose(linear_kernel(PIXELS, PIXELS), wanted, rtol=1e-6)


def test_neighbours_of_pixels_are_those_of_numpy():
  x = PIXELS.astype(float)
  away = np.square(x[:, None] - x).sum(-1)
  wanted = TARGETS[np.argsort(away)[:, :2]].mean(1)
  nearest = regressors.nearest_neighbours(2)
  found = nearest(Batch(jnp.asarray(PIXELS), TARGETS), jnp.asarray(PIXELS))
  np.testing.assert_allclose(found, wanted)
