"""Calibration of distributions whose coverage is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metajax.calibration import (
  LEVELS,
  calibration_error,
  coverage,
  expected_calibration_error,
)
from metajax.losses import over_examples
from metajax.predictive import Normal, StudentT

# The quantiles of N(0, 1) at the middles of 1000 parts of equal probability.
EVEN = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)[:, None]
EXACT = Normal(jnp.zeros((1000, 1)), jnp.ones((1000, 1)))
NARROW = EXACT._replace(scale=EXACT.scale / 2)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_the_level_of_exact_distributions(level):
  np.testing.assert_allclose(coverage(level)(EXACT, EVEN), level, atol=0.0011)
  # Of half the scale: P(|z| < q / 2).
  known = 2 * stats.norm.cdf(stats.norm.ppf((1 + level) / 2) / 2) - 1
  np.testing.assert_allclose(coverage(level)(NARROW, EVEN), known, atol=0.0011)


@pytest.mark.slow
def test_coverage_is_that_of_the_interval_between_quantiles():
  rng = np.random.default_rng(0)
  found = StudentT(
    jnp.asarray(rng.normal(size=(40, 2))), jnp.ones((40, 2)), jnp.ones((40, 2))
  )
  y = rng.normal(size=(40, 2))
  low, high = found.quantile(0.15), found.quantile(0.85)
  np.testing.assert_allclose(
    coverage(0.7)(found, y), ((low <= y) & (y <= high)).mean(), rtol=1e-6
  )


def test_calibration_error_is_that_of_the_levels():
  assert calibration_error(EXACT, EVEN) < 0.0011
  levels = np.array(LEVELS)
  covered = 2 * stats.norm.cdf(stats.norm.ppf((1 + levels) / 2) / 2) - 1
  np.testing.assert_allclose(
    calibration_error(NARROW, EVEN), np.mean(levels - covered), atol=0.0011
  )


def test_calibration_error_of_few_examples_is_as_documented():
  """0.34 / sqrt(n), by 4,000 draws, whose standard error is below 1%."""
  n = 50
  y = jax.random.normal(jax.random.key(0), (4000, n, 1))
  exact = Normal(jnp.zeros((n, 1)), jnp.ones((n, 1)))
  errors = jax.jit(jax.vmap(lambda y: calibration_error(exact, y)))(y)
  assert errors.std() / 4000**0.5 < 0.01 * errors.mean()
  np.testing.assert_allclose(errors.mean(), 0.34 / n**0.5, rtol=0.04)


@pytest.mark.slow
def test_masked_examples_have_no_effect():
  mask = np.arange(1000) % 3 == 0
  y = np.where(mask[:, None], EVEN, 50.0)
  for metric in (calibration_error, coverage(0.5)):
    found = over_examples(metric, NARROW, y, jnp.asarray(mask))
    real = jax.tree.map(lambda x: x[mask], NARROW)
    np.testing.assert_allclose(found, metric(real, EVEN[mask]), rtol=1e-5)


def _guo(logits, labels, num_bins):
  """Equation (3) of Guo et al. 2017, bin by bin."""
  e = np.exp(logits - logits.max(-1, keepdims=True))
  p = e / e.sum(-1, keepdims=True)
  confidence, right = p.max(-1), p.argmax(-1) == labels
  total = 0.0
  for b in range(num_bins):
    inside = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
    if inside.any():
      gap = right[inside].mean() - confidence[inside].mean()
      total += inside.mean() * abs(gap)
  return total


def test_expected_calibration_error_is_guos():
  rng = np.random.default_rng(1)
  logits, labels = 2 * rng.normal(size=(300, 4)), rng.integers(4, size=300)
  for num_bins in (1, 15):
    np.testing.assert_allclose(
      expected_calibration_error(logits, labels, num_bins=num_bins),
      _guo(logits, labels, num_bins),
      rtol=1e-5,
    )
  mask = rng.random(300) < 0.5
  np.testing.assert_allclose(
    over_examples(expected_calibration_error, logits, labels, mask),
    _guo(logits[mask], labels[mask], 15),
    rtol=1e-5,
  )


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match=r"level=1.5: must be above 0 and below"):
    coverage(1.5)
  with pytest.raises(ValueError, match="num_bins=0: must be 1 or more"):
    expected_calibration_error(np.zeros((2, 2)), np.zeros(2, int), num_bins=0)


@pytest.mark.parametrize(
  "labels, message",
  [
    (np.zeros((6, 1), int), r"labels of shape \(6, 1\): must be"),
    (np.zeros(6), "labels: float.. given, must be integers"),
  ],
)
def test_labels_that_are_not_one_class_each_are_refused(labels, message):
  """An axis of 1 compared all pairs: the error, 0 to 1, was 2.08."""
  with pytest.raises(ValueError, match=message):
    expected_calibration_error(np.zeros((6, 3)), labels)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_errors_of_half_precision_are_those_of_float32(dtype):
  # A sum of so many stands still in half precision.
  logits = jax.random.normal(jax.random.key(0), (20_000, 2), dtype)
  labels = jnp.zeros(20_000, int)
  found, known = (
    expected_calibration_error(x, labels, num_bins=4)
    for x in (logits, logits.astype(jnp.float32))
  )
  np.testing.assert_allclose(found, known, rtol=1e-5)
  narrow = jax.tree.map(lambda x: x.astype(dtype), NARROW)
  targets = jnp.asarray(EVEN, dtype)
  found, known = (calibration_error(p, targets) for p in (narrow, NARROW))
  np.testing.assert_allclose(found, known, rtol=1e-5)
