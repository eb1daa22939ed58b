"""Ranges are checked where the numbers are known; sums are wide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.numerics import check_number, floating, wide


@pytest.mark.parametrize(
  "value, bounds, allowed",
  [
    (0, {"above": 0}, "above 0"),
    (-1.0, {"at_least": 0}, "0 or more"),
    (0, {"at_least": 1}, "1 or more"),
    (1.5, {"at_least": 0, "at_most": 1}, "0 to 1"),
    (0, {"above": 0, "at_most": 1}, "above 0 and at most 1"),
    (1, {"at_least": 0, "below": 1}, "at least 0 and below 1"),
    (3, {"at_most": 2}, "at most 2"),
    (float("nan"), {"above": 0}, "above 0"),
    (float("nan"), {}, "a number"),
    (None, {"above": 0, "below": 1}, "above 0 and below 1"),
    ("0.5", {"at_least": 0}, "0 or more"),
    (1j, {}, "a number"),
    (np.float32(-1), {"at_least": 0}, "0 or more"),
    (jnp.float32(-1), {"at_least": 0}, "0 or more"),
    (np.array([1.0, -1.0]), {"at_least": 0}, "0 or more"),
  ],
)
def test_a_known_number_out_of_range_is_refused(value, bounds, allowed):
  with pytest.raises(ValueError) as error:
    check_number("x", value, **bounds)
  assert str(error.value) == f"x={value}: must be {allowed}."


@pytest.mark.parametrize(
  "value, bounds",
  [
    (1e-9, {"above": 0}),
    (0, {"at_least": 0, "below": 1}),
    (1, {"above": 0, "at_most": 1}),
    (jnp.array([0.5, 0.7]), {"above": 0, "below": 1}),
    (jnp.bfloat16(0.5), {"above": 0}),
  ],
)
def test_a_number_in_range_passes(value, bounds):
  check_number("x", value, **bounds)


def test_traced_numbers_pass():
  def double(x):
    check_number("x", x, above=0)
    return 2 * x

  np.testing.assert_array_equal(jax.vmap(double)(jnp.arange(3.0)), [0, 2, 4])
  assert jax.jit(jax.grad(double))(-1.0) == 2.0


@pytest.mark.parametrize(
  "dtype, expected",
  [
    (jnp.float16, jnp.float32),
    (jnp.bfloat16, jnp.float32),
    (jnp.int32, jnp.float32),
    (jnp.bool_, jnp.float32),
    (jnp.float32, jnp.float32),
    (jnp.complex64, jnp.complex64),
  ],
)
def test_wide_is_float32_at_least(dtype, expected):
  with jax.numpy_dtype_promotion("strict"):
    assert wide(jnp.ones(2, dtype)).dtype == expected
  with jax.enable_x64(True):
    assert wide(np.ones(2)).dtype == np.float64


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, bool, np.float16])
def test_floating_changes_no_dtype_of_floats(dtype):
  found = floating(np.ones(2, dtype))
  wanted = np.float16 if dtype is np.float16 else np.float32
  assert found.dtype == wanted
