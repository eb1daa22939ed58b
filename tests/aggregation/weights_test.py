"""Averages in weight space, against numpy float64 and what is known of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metajax.aggregation import (
  fisher_average,
  fisher_diagonal,
  greedy_soup,
  pseudo_gradient,
  stack_models,
  weighted_average,
)
from metajax.types import Batch, State
from tests.processes import run_python

DRAW = np.random.default_rng(0)
VALUES = st.floats(-100, 100, width=32)


@st.composite
def _stacks(draw):
  """Stacks of 1 to 5 models of two arrays, and weights."""
  size = draw(st.integers(1, 5))
  stack = {
    name: draw(hnp.arrays(np.float32, (size, *shape), elements=VALUES))
    for name, shape in (("w", draw(hnp.array_shapes(max_side=3))), ("b", ()))
  }
  # Not all zero; their ratios are moderate.
  weights = draw(hnp.arrays(np.float32, size, elements=st.floats(0.125, 8)))
  return jax.tree.map(jnp.asarray, stack), weights


def _assert_close(found, expected):
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(_stacks(), st.randoms(use_true_random=False))
def test_weighted_average(case, random):
  stack, weights = case
  found = weighted_average(stack, weights)
  _assert_close(
    found,
    jax.tree.map(
      lambda x: np.average(np.float64(x), axis=0, weights=weights), stack
    ),
  )
  # The order of the models and the scale of the weights do not matter.
  order = np.array(random.sample(range(len(weights)), len(weights)))
  permuted = jax.tree.map(lambda x: x[order], stack)
  _assert_close(weighted_average(permuted, 7 * weights[order]), found)
  # Nor does averaging change equal models.
  equal = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), stack)
  first = jax.tree.map(lambda x: x[0], stack)
  _assert_close(weighted_average(equal, weights), first)


def test_average_of_bfloat16_is_summed_in_float32():
  """256 ones and 256 zeros; in bfloat16 a sum stops at 256."""
  stack = jnp.repeat(jnp.array([1, 0, 1, 0], jnp.bfloat16), 256)[:, None]
  found = weighted_average(stack)
  assert found.dtype == jnp.bfloat16
  assert found.tolist() == [0.5]


@pytest.mark.parametrize("weights", [None, [4e4, 4e4, 4e4]])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_weights_whose_sum_is_more_than_their_dtype_holds(weights, dtype):
  stack = jnp.asarray([[4e4], [5e4], [6e4]], dtype)
  if weights is not None:
    weights = jnp.asarray(weights, dtype)
  found = [
    weighted_average(stack, weights),
    fisher_average(stack, jnp.full_like(stack, 4e4), weights),
  ]
  for average in found:
    assert average.dtype == dtype
    expected = np.float64(stack).mean(0).astype(dtype)
    np.testing.assert_array_equal(average, expected)
  huge = jnp.full(3, 3e38)
  np.testing.assert_allclose(weighted_average(jnp.eye(3), huge), 1 / 3)


def test_fisher_average_of_narrow_models_is_summed_in_float32():
  """256 ones with little information, 256 zeros with less than the floor."""
  stack = jnp.repeat(jnp.array([1, 0], jnp.bfloat16), 256)[:, None]
  fishers = jnp.repeat(jnp.array([1e-3, 1e-9], jnp.bfloat16), 256)[:, None]
  found = fisher_average(stack, fishers, floor=1e-3)
  one = float(jnp.bfloat16(1e-3)) + 1e-3
  expected = one / (one + 1e-9 + 1e-3)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(float(found[0]), expected, rtol=2**-8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_pseudo_gradient_averages_the_differences(dtype):
  """Where one of many models moved, by little, their average is theta."""
  eps = float(jnp.finfo(dtype).eps)
  stack = jnp.ones((64, 1), dtype).at[0].add(2 * eps)
  found = pseudo_gradient(jnp.ones(1, dtype), stack)
  assert found.dtype == dtype
  np.testing.assert_allclose(np.float64(found), -2 * eps / 64, rtol=1e-6)
  weights = jnp.arange(64, 0, -1)
  found = pseudo_gradient(jnp.ones(1, dtype), stack, weights)
  np.testing.assert_allclose(
    np.float64(found), -128 * eps / np.arange(65).sum(), rtol=eps + 1e-6
  )


def test_sums_are_at_the_highest_precision():
  """Accelerators multiply float32 in fewer bits unless they are told."""
  stack = jnp.ones((3, 2))
  for fn in (weighted_average, lambda s: pseudo_gradient(s[0], s)):
    program = jax.jit(fn).lower(stack).as_text()
    assert "dot_general" in program
    assert "precision = [HIGHEST, HIGHEST]" in program


def test_state_is_averaged_and_no_part_of_the_pseudo_gradient():
  params = {"w": jnp.ones(2), "norm": State({"n": jnp.int32(1)})}
  stack = {
    "w": jnp.array([[3.0, 1.0], [1.0, 1.0]]),
    "norm": State({"n": jnp.array([4, 6])}),
  }
  grads = pseudo_gradient(params, stack)
  np.testing.assert_array_equal(grads["w"], [-1, 0])
  assert grads["norm"].value["n"] == 5
  average = weighted_average(stack)
  np.testing.assert_array_equal(average["w"], [2, 1])
  assert average["norm"].value["n"] == 5


def test_average_compiles_and_has_the_weights_gradient():
  stack, weights = jnp.array([[1.0], [5.0]]), jnp.array([1.0, 3.0])
  grad = jax.jit(jax.grad(lambda w: weighted_average(stack, w)[0]))(weights)
  # d/dw_m sum w x / sum w = (x_m - mean) / sum w, with mean 4.
  np.testing.assert_allclose(grad, [-0.75, 0.25], rtol=1e-6)


@pytest.mark.slow
def test_one_full_batch_step_of_every_client_is_one_step_on_their_data():
  """FedAvg with one local step, weighted by the numbers of examples."""
  sizes, step_size = [3, 10, 7], 0.1
  theta = jnp.asarray(DRAW.normal(size=4))
  data = [
    (jnp.asarray(DRAW.normal(size=(n, 4))), jnp.asarray(DRAW.normal(size=n)))
    for n in sizes
  ]

  def loss(theta, x, y):
    return jnp.mean(jnp.square(x @ theta - y))

  def step(x, y):
    return theta - step_size * jax.grad(loss)(theta, x, y)

  clients = stack_models([step(x, y) for x, y in data])
  pooled = step(*(jnp.concatenate(part) for part in zip(*data, strict=True)))
  np.testing.assert_allclose(
    weighted_average(clients, sizes), pooled, rtol=1e-5, atol=1e-6
  )


def _score(target, calls, params):
  calls.append(np.asarray(params))
  return -jnp.square(params - target).sum()


def test_greedy_soup_takes_what_helps_in_the_order_of_scores():
  # From the target 0: 1, 1.5, 2 and 4 away. The mean of the best two, -0.25,
  # is better; with 2 it would be 0.5, which is worse; with 4, too.
  stack = jnp.array([[2.0], [1.0], [4.0], [-1.5]])
  calls = []
  soup, ingredients = greedy_soup(stack, functools.partial(_score, 0.0, calls))
  assert ingredients == [1, 3]
  np.testing.assert_allclose(soup, [-0.25])
  np.testing.assert_allclose(
    np.ravel(calls)[4:], [-0.25, 0.5, 3.5 / 3], rtol=1e-6
  )


@pytest.mark.slow
def test_greedy_soup_is_never_worse_than_the_best_model():
  for seed in range(20):
    draw = np.random.default_rng(seed).normal
    stack, target = jnp.asarray(draw(size=(6, 3))), draw(size=3)
    score = functools.partial(_score, target, [])
    soup, ingredients = greedy_soup(stack, score)
    assert score(soup) >= max(score(model) for model in stack)
    assert len(set(ingredients)) == len(ingredients)


def test_greedy_soup_refuses_scores_that_are_none():
  with pytest.raises(ValueError, match="NaN for model 0"):
    greedy_soup(jnp.ones((2, 1)), lambda params: jnp.nan)


def test_fisher_diagonal_of_logistic_regression():
  """d log p(y|x) / d theta = (y - sigmoid(theta x)) x."""
  theta = jnp.asarray(DRAW.normal(size=3))
  x, y = DRAW.normal(size=(50, 3)), DRAW.integers(0, 2, 50)

  def log_likelihood(theta, x, y):
    return -optax.sigmoid_binary_cross_entropy(x @ theta, y)

  found = fisher_diagonal(
    log_likelihood, theta, Batch(jnp.asarray(x), jnp.asarray(y))
  )
  residual = y - 1 / (1 + np.exp(-x @ np.float64(theta)))
  expected = np.mean((residual[:, None] * x) ** 2, axis=0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 50, 1000])
def test_fisher_diagonal_does_not_depend_on_the_batch_size(batch_size):
  theta = {"w": jnp.asarray(DRAW.normal(size=3)), "m": State(jnp.ones(1))}
  x, y = DRAW.normal(size=(50, 3)), DRAW.integers(0, 2, 50)
  x[30:] = np.nan  # Padding counts nowhere.

  def log_likelihood(theta, x, y):
    return -optax.sigmoid_binary_cross_entropy(x["in"] @ theta["w"], y)

  batch = Batch({"in": jnp.asarray(x)}, jnp.asarray(y), jnp.arange(50) < 30)
  found = fisher_diagonal(log_likelihood, theta, batch, batch_size=batch_size)
  residual = y - 1 / (1 + np.exp(-x @ np.float64(theta["w"])))
  expected = np.mean(((residual[:, None] * x) ** 2)[:30], axis=0)
  np.testing.assert_allclose(found["w"], expected, rtol=1e-5)
  np.testing.assert_array_equal(found["m"].value, [0])


def test_fisher_diagonal_holds_the_gradients_of_one_batch_at_once():
  theta, batch = jnp.ones((100, 10)), Batch(jnp.ones((256, 100)), jnp.ones(256))

  def log_likelihood(theta, x, y):
    return -jnp.square(jnp.tanh(x @ theta).sum() - y)

  def memory(batch_size):
    return (
      jax.jit(
        lambda theta, batch: fisher_diagonal(
          log_likelihood, theta, batch, batch_size=batch_size
        )
      )
      .lower(theta, batch)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  every = 256 * theta.nbytes
  assert memory(8) < every / 8 + batch.inputs.nbytes
  assert memory(None) > every


def test_squares_of_narrow_gradients_do_not_vanish():
  """1e-5 squared is zero in float16, and 1e4 squared infinite."""
  found = fisher_diagonal(
    lambda theta, x, y: theta * x,
    jnp.float16(1),
    Batch(jnp.array([1e-5, 1e4], jnp.float16), jnp.zeros(2)),
  )
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, 5e7, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_impossible_batch_sizes_are_named(batch_size):
  with pytest.raises(ValueError, match=f"batch_size={batch_size}: must be 1"):
    fisher_diagonal(
      lambda theta, x, y: theta * x,
      jnp.ones(()),
      Batch(jnp.ones(2), jnp.ones(2)),
      batch_size=batch_size,
    )


def test_fisher_diagonal_tends_to_the_inverse_variance_of_a_gaussian():
  """log N(y | theta, s^2): the Fisher information of theta is 1 / s^2."""
  sigma = 0.5
  y = 1.0 + sigma * np.random.default_rng(1).normal(size=20_000)

  def log_likelihood(theta, x, y):
    del x
    return -jnp.square((y - theta) / sigma) / 2

  batch = Batch(jnp.zeros(len(y)), jnp.asarray(y))
  found = fisher_diagonal(log_likelihood, jnp.float32(1.0), batch)
  # The variance of chi^2 is 2: 4 standard errors.
  bound = 4 * np.sqrt(2 / len(y)) / sigma**2
  assert abs(found - 1 / sigma**2) < bound


def test_fisher_average_of_gaussians_is_the_precision_weighted_mean():
  means, variances = np.array([[1.0, 2.0], [4.0, -2.0]]), [[1, 4.0], [0.5, 1]]
  precision = 1 / np.asarray(variances)
  found = fisher_average(
    jnp.asarray(means), jnp.asarray(precision), floor=1e-12
  )
  # (1 * 1 + 2 * 4) / 3 and (0.25 * 2 + 1 * -2) / 1.25.
  np.testing.assert_allclose(found, [3.0, -1.2], rtol=1e-6)
  weighted = fisher_average(
    jnp.asarray(means), jnp.asarray(precision), [2, 1], floor=1e-12
  )
  np.testing.assert_allclose(weighted, [2.5, -2 / 3], rtol=1e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(_stacks())
def test_equal_fishers_leave_the_weighted_average(case):
  stack, weights = case
  for value in (0.0, 3.0):
    fishers = jax.tree.map(lambda x, v=value: jnp.full_like(x, v), stack)
    _assert_close(
      fisher_average(stack, fishers, weights), weighted_average(stack, weights)
    )


def test_fisher_average_needs_a_floor():
  with pytest.raises(ValueError, match=r"floor=0.0: must be above 0"):
    fisher_average(jnp.ones((2, 1)), jnp.ones((2, 1)), floor=0.0)


@pytest.mark.parametrize(
  ("fishers", "message"),
  [
    ([[1.0, -0.5], [-2.0, 1.0]], r"^fishers\['w'\]=-2.0: must be 0 or more"),
    ([[1.0, 1.0]], r"^fishers\['w'\] has shape \(1, 2\), must be \(2, 2\)"),
  ],
)
def test_fishers_are_checked_where_they_are_known(fishers, message):
  stack, fishers = {"w": jnp.ones((2, 2))}, {"w": jnp.asarray(fishers)}
  with pytest.raises(ValueError, match=message):
    fisher_average(stack, fishers)
  # Constants of a compiled program are known, too.
  with pytest.raises(ValueError, match=message):
    jax.jit(lambda stack: fisher_average(stack, fishers))(stack)


def test_fisher_average_of_state_is_the_weighted_average():
  stack = {"w": jnp.ones(2), "norm": State(jnp.array([1.0, 5.0]))}
  fishers = {"w": jnp.ones(2), "norm": State(jnp.array([3.0, 0.0]))}
  found = fisher_average(stack, fishers, [3.0, 1.0])
  np.testing.assert_allclose(found["norm"].value, 2.0)


def test_floors_can_be_swept():
  stack, fishers = jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [0.0]])
  found = jax.vmap(lambda f: fisher_average(stack, fishers, floor=f))(
    jnp.array([1.0, 3.0])
  )
  # (2 * 1 + 1 * 3) / 3 and (4 * 1 + 3 * 3) / 7.
  np.testing.assert_allclose(found[:, 0], [5 / 3, 13 / 7], rtol=1e-6)


def test_numbers_of_examples_are_weights_of_the_precision_in_use():
  with jax.enable_x64(True):
    found = weighted_average(jnp.array([[1.0], [4.0]]), jnp.array([1, 2]))
  np.testing.assert_allclose(found, [3.0], rtol=1e-12)


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from metajax.aggregation import weighted_average
mesh = Mesh(jax.devices(), "models")
stack = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
weights = np.arange(16.0, dtype=np.float32)
placed = jax.device_put(stack, NamedSharding(mesh, P("models")))
average = jax.jit(weighted_average).lower(placed, weights).compile()
expected = np.average(np.float64(stack), axis=0, weights=weights)
np.testing.assert_allclose(average(placed, weights), expected, rtol=1e-5)
program = average.as_text()
assert "all-reduce" in program and "all-gather" not in program
"""


@pytest.mark.slow
def test_average_of_a_sharded_stack_is_summed_over_the_devices():
  run_python("-c", SHARDED, devices=4)


def test_fisher_of_no_real_example_is_zero_and_not_nan():
  def log_p(params, x, y):
    return params @ x

  inputs, params = jnp.ones((3, 2)), jnp.ones(2)
  masked = Batch(inputs, jnp.zeros(3), jnp.zeros(3, bool))
  np.testing.assert_array_equal(fisher_diagonal(log_p, params, masked), 0)
  with pytest.raises(ValueError, match="^batch: no example"):
    fisher_diagonal(log_p, params, Batch(inputs[:0], jnp.zeros(0)))
  with pytest.raises(ValueError, match="^log_likelihood: returned the shape"):
    fisher_diagonal(lambda p, x, y: p * x, params, masked)
