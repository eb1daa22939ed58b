"""ConvCNP: what moves, and what its first layer sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import convolutional_process
from metajax.types import Batch

RNG = jax.random.key(0)
DENSITY = 8


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def case():
  """`(compiled solve, support)` far from the ends of the grid."""
  learner = convolutional_process(
    bounds=(-8.0, 8.0), density=DENSITY, width=4, layers=3, kernel=5
  )
  params = learner.init(RNG, jnp.zeros((2, 1)))
  draw = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + draw.normal(0, 0.1, x.shape), params)

  def solve(support, inputs):
    return learner.predict(learner.adapt(params, support, RNG), inputs)

  support = Batch(draw.uniform(-1, 1, (5, 1)), draw.normal(size=(5, 1)))
  return jax.jit(solve), support


@pytest.mark.slow
def test_predictions_move_with_the_support(case):
  solve, support = case
  inputs = np.linspace(-1, 1, 7)[:, None]
  expected = solve(support, inputs)
  move = 13 / DENSITY  # A whole number of grid points.
  moved = support._replace(inputs=support.inputs + move)
  found = solve(moved, inputs + move)
  np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6, atol=1e-8)
  np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-6)
  # Not because they are the same everywhere.
  assert np.ptp(expected.mean) > 1e-3


def test_points_beyond_its_reach_have_no_effect(case):
  """3 convolutions of 5 points reach 6 points; the kernels about 2 each."""
  solve, support = case
  far = Batch(
    np.append(support.inputs, [[6.0]], axis=0),
    np.append(support.targets, [[3.0]], axis=0),
  )
  inputs = np.linspace(-1, 1, 7)[:, None]
  np.testing.assert_allclose(
    solve(far, inputs).mean, solve(support, inputs).mean, atol=1e-7
  )
  beside = np.array([[5.9]])
  near = solve(far, beside).mean - solve(support, beside).mean
  assert np.abs(near).max() > 1e-3


def test_inputs_of_more_numbers_are_refused():
  with pytest.raises(ValueError, match="inputs of 2 numbers: must be one"):
    convolutional_process().init(RNG, jnp.zeros((3, 2)))


@pytest.mark.parametrize("far", [-9.0, 9.0, 100.0])
def test_inputs_beyond_the_grid_are_named(far):
  """No convolution sees them, and all predictions would be the same."""
  learner = convolutional_process(bounds=(-8.0, 8.0), width=4, layers=1)
  inputs = np.array([[0.0], [far]])
  with pytest.raises(ValueError, match="must be from -8.5 to 8.5, where the"):
    learner.init(RNG, inputs)


def test_padding_may_be_beyond_the_grid():
  """It is usually of zeros, which were refused for bounds from 1 to 2."""
  learner = convolutional_process(bounds=(1.0, 2.0), width=4, layers=1)
  inputs = jnp.array([[1.0], [1.4], [0.0]])
  mask = jnp.arange(3) < 2
  params = learner.init(RNG, inputs[:2])
  support = Batch(inputs, inputs, mask)
  means = []
  for n in (3, 2):
    some = jax.tree.map(lambda x, n=n: x[:n], support)
    task_params = learner.adapt(params, some, RNG)
    found = learner.predict(task_params, some.inputs, mask=some.mask)
    means.append(found.mean[:2])
  np.testing.assert_allclose(*means, rtol=1e-6)
  with pytest.raises(ValueError, match="inputs from 0 to 1.4: must be from"):
    learner.adapt(params, support._replace(mask=None), RNG)
