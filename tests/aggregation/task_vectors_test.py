"""Task arithmetic and TIES, by hand and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.aggregation import (
  task_arithmetic,
  task_vectors,
  ties_vector,
)
from metajax.types import State

BASE = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.array([0.5])}
STACK = {
  "w": jnp.array([[[2.0, 2.0]], [[1.0, 5.0]]]),
  "b": jnp.array([[0.0], [1.5]]),
}


def test_task_vectors_are_differences_from_the_base():
  vectors = task_vectors(STACK, BASE)
  np.testing.assert_allclose(vectors["w"], [[[1, 0]], [[0, 3]]])
  np.testing.assert_allclose(vectors["b"], [[-0.5], [1.0]])


def test_one_vector_of_scale_one_is_the_fine_tuned_model():
  vectors = task_vectors(STACK, BASE)
  found = task_arithmetic(BASE, vectors, jnp.array([0.0, 1.0]))
  for a, b in zip(*map(jax.tree.leaves, (found, STACK)), strict=True):
    np.testing.assert_allclose(a, b[1])


def test_sum_and_negation():
  vectors = task_vectors(STACK, BASE)
  both = task_arithmetic(BASE, vectors, 0.5)
  np.testing.assert_allclose(both["w"], [[1.5, 3.5]])
  np.testing.assert_allclose(both["b"], [0.75])
  less = task_arithmetic(BASE, vectors, [-1.0, 0.0])
  np.testing.assert_allclose(less["w"], [[0.0, 2.0]])
  np.testing.assert_allclose(less["b"], [1.0])


def test_scales_are_one_or_one_a_model():
  with pytest.raises(ValueError, match=r"scales of shape \(3,\)"):
    task_arithmetic(BASE, task_vectors(STACK, BASE), [1.0, 1.0, 1.0])


def test_ties_by_hand():
  # The largest 3 of 5 entries of each: 4, -3, 2 / -5, 3, 2 / 6, 4, -3.
  vectors = {
    "w": jnp.array([[4.0, -3.0, 0.1], [0.2, -5.0, 3.0], [6.0, 4.0, 0.3]]),
    "b": jnp.array([[2.0, 1.0], [2.0, 0.5], [-3.0, 0.0]]),
  }
  found = ties_vector(vectors, density=0.6)
  # Signs elected: +, - (-8 against 4), +, + (4 against -3), none.
  np.testing.assert_allclose(found["w"], [5.0, -4.0, 3.0])
  np.testing.assert_allclose(found["b"], [2.0, 0.0])


def _ties(vectors, weights, density):
  """Algorithm 1, an entry at a time, in float64."""
  size, count = vectors.shape
  kept = max(1, round(density * count))
  trimmed = np.zeros_like(vectors)
  for m in range(size):
    for j in np.argsort(-np.abs(vectors[m]))[:kept]:
      trimmed[m, j] = vectors[m, j]
  merged = np.zeros(count)
  for j in range(count):
    sign = np.sign(np.dot(weights, trimmed[:, j]))
    agree = [m for m in range(size) if trimmed[m, j] * sign > 0]
    if agree:
      merged[j] = np.average(trimmed[agree, j], weights=weights[agree])
  return merged


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
def test_ties_equals_a_loop(density):
  draw = np.random.default_rng(0)
  vectors = draw.normal(size=(5, 60))
  weights = draw.uniform(0.5, 2.0, 5)
  parts = {
    "a": jnp.asarray(vectors[:, :12]).reshape(5, 3, 4),
    "b": jnp.asarray(vectors[:, 12:]),
  }
  found = ties_vector(parts, weights, density=density)
  flat = np.concatenate([np.ravel(found["a"]), np.ravel(found["b"])])
  np.testing.assert_allclose(
    flat, _ties(vectors, weights, density), rtol=1e-5, atol=1e-6
  )


def test_narrow_models_come_back_from_their_task_vectors():
  """In bfloat16, 1 + 1/128 less 1/3 and back is another number."""
  base = jnp.asarray([1 / 3, 1000.0, 1e-3], jnp.bfloat16)
  model = jnp.asarray([1 + 1 / 128, 3.0, 2.0], jnp.bfloat16)
  vectors = task_vectors(model[None], base)
  np.testing.assert_array_equal(
    vectors[0], np.float32(model) - np.float32(base)
  )
  found = task_arithmetic(base, vectors, 1.0)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, model)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sums_of_task_vectors_are_wide(dtype):
  """300 vectors of 1, and of 4e4 with scales that cancel."""
  ones = jnp.ones((300, 1), dtype)
  found = task_arithmetic(jnp.zeros(1, dtype), ones, jnp.ones(300, dtype))
  np.testing.assert_array_equal(found, jnp.asarray([300], dtype))
  np.testing.assert_array_equal(ties_vector(ones), [1.0])
  if dtype == jnp.float16:
    large = jnp.full((4, 1), 4e4, dtype)
    scales = jnp.array([1, 1, -1, -1], dtype)
    assert task_arithmetic(jnp.ones(1, dtype), large, scales) == 1.0


@pytest.mark.slow
def test_densities_can_be_swept():
  draw = np.random.default_rng(0)
  vectors = draw.normal(size=(5, 60))
  densities = np.array([0.1, 0.5, 1.0])
  found = jax.vmap(lambda d: ties_vector(jnp.asarray(vectors), density=d))(
    jnp.asarray(densities)
  )
  expected = [_ties(vectors, np.ones(5), d) for d in densities]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_density_out_of_range_is_named(density):
  with pytest.raises(ValueError, match=f"density={density}"):
    ties_vector(STACK, density=density)


def _with_state(w, variance, count):
  state = {"variance": jnp.float32(variance), "count": jnp.int32(count)}
  return {"w": jnp.float32(w), "norm": State(state)}


@pytest.mark.parametrize(
  ("scales", "shares"),
  [
    # The shares of the base's state, 4, and of the models', 1 and 8.
    ([0.0, 1.0], [0, 0, 1]),
    ([0.25, 0.5], [0.25, 0.25, 0.5]),
    (1.0, [0, 0.5, 0.5]),
    ([3.0, 1.0], [0, 0.75, 0.25]),
    (-1.0, [1, 0, 0]),
    ([0.5, -2.0], [0.5, 0.5, 0]),
  ],
)
def test_state_is_averaged_and_never_extrapolated(scales, shares):
  """Added up with scales of 0.5 and -2, the variance would be -5.5."""
  base = _with_state(1.0, 4.0, 40)
  stack = jax.tree.map(
    lambda *x: jnp.stack(x),
    _with_state(2.0, 1.0, 10),
    _with_state(5.0, 8.0, 80),
  )
  vectors = task_vectors(stack, base)
  found = task_arithmetic(base, vectors, scales)
  np.testing.assert_allclose(
    found["w"], 1 + np.dot(np.broadcast_to(scales, 2), [1.0, 4.0])
  )
  state = found["norm"].value
  variance = np.dot(shares, [4.0, 1.0, 8.0])
  np.testing.assert_allclose(state["variance"], variance, rtol=1e-6)
  assert state["count"].dtype == jnp.int32
  np.testing.assert_array_equal(state["count"], np.round(10 * variance))


def test_ties_ranks_weights_only_and_averages_state():
  """A variance of 100 would be the largest of both numbers, the one kept."""
  vectors = {
    "w": jnp.array([1.0, 3.0]),
    "norm": State(jnp.array([100.0, 200.0])),
  }
  found = ties_vector(vectors, [1.0, 3.0], density=0.5)
  np.testing.assert_allclose(found["w"], 2.5)
  np.testing.assert_allclose(found["norm"].value, 175.0)
  base = {"w": jnp.float32(1.0), "norm": State(jnp.float32(25.0))}
  moved = task_arithmetic(base, jax.tree.map(lambda x: x[None], found), 0.5)
  np.testing.assert_allclose(moved["w"], 2.25)
  np.testing.assert_allclose(moved["norm"].value, 100.0)
