"""Bar distributions against numerical integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import Bars, quantile_edges

# The outermost bars have other widths than the others.
EDGES = np.array([-2.0, -1.5, -0.25, 0.0, 0.5, 1.75])
N, D, B = 3, 2, 5


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def bars():
  logits = np.random.default_rng(0).normal(size=(N, D, B))
  return Bars(jnp.asarray(logits), jnp.broadcast_to(EDGES, (N, B + 1)))


def _line():
  """Points that are dense enough, and none of them on an edge."""
  return np.linspace(-12, 12, 480_001) + 1e-7


@pytest.fixture(scope="module")
def density(bars):
  """`[points, N, D]` on the line."""
  one = jax.vmap(lambda y: bars.log_prob(jnp.full((N, D), y)))
  return np.exp(np.asarray(jax.jit(one)(_line())))


def test_density_integrates_to_one(density):
  np.testing.assert_allclose(
    np.trapezoid(density, _line(), axis=0), 1, atol=1e-4
  )


@pytest.mark.slow
def test_mean_and_variance_are_those_of_the_density(bars, density):
  line = _line()[:, None, None]
  mean = np.trapezoid(line * density, _line(), axis=0)
  square = np.trapezoid(np.square(line - mean) * density, _line(), axis=0)
  np.testing.assert_allclose(bars.mean, mean, atol=2e-4)
  np.testing.assert_allclose(bars.variance, square, atol=5e-4)


@pytest.mark.parametrize("y", [-3.0, -1.7, -1.0, 0.2, 1.2, 4.0])
def test_cdf_is_the_integral_of_the_density(bars, density, y):
  below = _line() < y
  expected = np.trapezoid(density[below], _line()[below], axis=0)
  np.testing.assert_allclose(bars.cdf(jnp.full((N, D), y)), expected, atol=2e-4)


@pytest.mark.parametrize("q", [1e-3, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999])
def test_quantile_is_the_inverse_of_the_cdf(bars, q):
  np.testing.assert_allclose(bars.cdf(bars.quantile(q)), q, rtol=1e-9)


def test_half_of_a_tail_is_within_its_bar(bars):
  """At the outermost edges, by the definition of the half-normals."""
  p = bars.probabilities
  low, high = (bars.cdf(jnp.full((N, D), EDGES[i])) for i in (0, -1))
  np.testing.assert_allclose(low, p[..., 0] / 2, rtol=1e-9)
  np.testing.assert_allclose(1 - high, p[..., -1] / 2, rtol=1e-9)


@pytest.mark.parametrize("y", [-1e4, -2.0, -1.5, 0.0, 0.5, 1.75, 1e4])
def test_gradients_are_finite_in_the_tails_and_at_edges(bars, y):
  def loss(bars, y):
    return bars.log_prob(jnp.full((N, D), y)).sum()

  logits, at = jax.grad(loss, (0, 1))(bars, y)
  assert np.isfinite(logits.logits).all() and np.isfinite(at)
  # The probabilities sum to 1, so that their gradients sum to 0.
  np.testing.assert_allclose(logits.logits.sum(-1), 0, atol=1e-12)


@pytest.mark.slow
def test_examples_are_independent_of_each_other(bars):
  """So that scores of masked batches can take them one at a time."""
  targets = jnp.linspace(-2, 2, N * D).reshape(N, D)
  whole = bars.log_prob(targets)
  for i in range(N):
    part = jax.tree.map(lambda x, i=i: x[i : i + 1], bars)
    np.testing.assert_allclose(part.log_prob(targets[i : i + 1])[0], whole[i])


def test_edges_are_quantiles():
  targets = np.random.default_rng(0).normal(size=(50, 40))
  edges = quantile_edges(jnp.asarray(targets), 8)
  counts, _ = np.histogram(targets, edges)
  assert counts.sum() == targets.size
  assert np.ptp(counts) <= 2
  with pytest.raises(ValueError, match="num_bars=2: must be 3 or more"):
    quantile_edges(jnp.asarray(targets), 2)
  with pytest.raises(ValueError, match="too many are equal for num_bars=4"):
    quantile_edges(jnp.zeros(10), 4)


def test_half_precision_is_computed_in_float32():
  # A sum of so many probabilities stands still in half precision.
  logits = jnp.zeros((1, 1, 1000), jnp.bfloat16)
  bars = Bars(logits, jnp.linspace(0, 1, 1001)[None])
  for q in (0.1, 0.9):
    np.testing.assert_allclose(bars.quantile(q), q, rtol=1e-4)
    np.testing.assert_allclose(bars.cdf(jnp.full((1, 1), q)), q, rtol=1e-4)
  targets = jnp.arange(1001)
  edges = quantile_edges(targets, 4)
  np.testing.assert_allclose(edges, [0, 250, 500, 750, 1000])
