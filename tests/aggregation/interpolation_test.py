"""The line between two models, where the loss along it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.aggregation import interpolate, loss_barrier
from metajax.types import State


def test_ends_and_middle_of_the_line():
  one, other = {"w": jnp.array([0.0, 2.0])}, {"w": jnp.array([4.0, 2.0])}
  for weight, expected in ((0, [0, 2]), (0.25, [1, 2]), (1, [4, 2])):
    np.testing.assert_allclose(
      interpolate(one, other, weight)["w"], expected, rtol=1e-6
    )


def test_state_is_not_extrapolated():
  """A variance of 1 on the line to 4 would be -2 at -1."""
  one = {"w": jnp.float32(1.0), "norm": State(jnp.float32(1.0))}
  other = {"w": jnp.float32(4.0), "norm": State(jnp.float32(4.0))}
  for weight, w, variance in ((-1, -2, 1), (0.5, 2.5, 2.5), (2, 7, 4)):
    found = interpolate(one, other, weight)
    np.testing.assert_allclose(found["w"], w)
    np.testing.assert_allclose(found["norm"].value, variance)


def test_random_keys_in_state_are_those_of_the_first_model():
  one, other = (State(jax.random.key(i)) for i in range(2))
  found = interpolate(one, other, 0.7)
  np.testing.assert_array_equal(*map(jax.random.key_data, (found[0], one[0])))


def test_barrier_of_a_double_well():
  """(x^2 - 1)^2 from -1 to 1: zero at both ends, 1 in the middle."""
  barrier = loss_barrier(
    lambda x: (x**2 - 1) ** 2, jnp.float32(-1), jnp.float32(1), 5
  )
  losses = barrier.losses
  # The losses of both ends are equal, and so are the two barriers.
  np.testing.assert_allclose(barrier.above_chord, 1.0, rtol=1e-6)
  np.testing.assert_allclose(barrier.above_mean, 1.0, rtol=1e-6)
  # At -1, -1/2, 0, 1/2, 1.
  np.testing.assert_allclose(losses, [0, 9 / 16, 1, 9 / 16, 0], atol=1e-6)


def test_barrier_is_measured_from_the_chord():
  """-x^2 from 0 to 2 is above its chord -2x by x (2 - x), 1 in the middle."""
  barrier = loss_barrier(lambda x: -(x**2), jnp.float32(0), jnp.float32(2), 3)
  np.testing.assert_allclose(barrier.above_chord, 1.0, rtol=1e-6)
  # The highest loss is 0; the mean of the ends, 0 and -4, is -2.
  np.testing.assert_allclose(barrier.above_mean, 2.0, rtol=1e-6)


def test_convex_losses_have_none_above_their_chord():
  barrier = loss_barrier(lambda x: x**2, jnp.float32(-3), jnp.float32(1))
  assert barrier.above_chord == 0
  # 9 at the higher end, and 5 is the mean of 9 and 1.
  np.testing.assert_allclose(barrier.above_mean, 4.0, rtol=1e-6)


def test_lines_between_narrow_models_keep_their_dtype():
  one, other = jnp.bfloat16(1), jnp.bfloat16(2)
  dtypes = []

  def loss(x):
    dtypes.append(x.dtype)
    return x

  losses = loss_barrier(loss, one, other, 3).losses
  assert dtypes == [jnp.bfloat16] and losses.dtype == jnp.float32
  np.testing.assert_array_equal(losses, [1, 1.5, 2])


def test_models_of_other_shapes_are_refused():
  """A layer of one unit was broadcast to one of three."""
  with pytest.raises(ValueError, match=r"^other: the shape of .* is \(2, 1\)"):
    interpolate(jnp.ones((2, 3)), jnp.ones((2, 1)), 0.5)


@pytest.mark.parametrize("num_points", [2, 0])
def test_ends_alone_are_no_line(num_points):
  with pytest.raises(ValueError, match=f"num_points={num_points}"):
    loss_barrier(lambda x: x, jnp.ones(()), jnp.ones(()), num_points)


@pytest.mark.parametrize("weight", [[0.1, 0.2, 0.3], [0.5], float("nan")])
def test_a_weight_that_is_not_one_number_is_named(weight):
  with pytest.raises(ValueError, match="^weight"):
    interpolate({"w": jnp.zeros(3)}, {"w": jnp.ones(3)}, jnp.asarray(weight))


def test_a_loss_that_is_no_scalar_is_named():
  with pytest.raises(ValueError, match=r"^loss_fn: returned the shape \(3,\)"):
    loss_barrier(lambda p: p["w"], {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}, 3)
