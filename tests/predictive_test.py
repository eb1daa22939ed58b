"""Predictive distributions against scipy in float64, and through `evaluate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from metajax.evaluation import evaluate
from metajax.losses import over_examples
from metajax.predictive import (
  Bernoulli,
  Normal,
  NormalMixture,
  StudentT,
  log_likelihood,
  mean_error,
  negative_log_likelihood,
)
from metajax.types import Batch, Episode, MetaLearner

RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=(5, 2))
SCALE = RNG.uniform(0.3, 2, (5, 2))
DF = np.array([0.7, 1.5, 2.5, 4, 60])[:, None] + np.zeros((5, 2))
LOGITS = RNG.normal(size=(5, 2))
# Near the centre and far in the tails.
TARGETS = [MEAN + SCALE * z for z in (-9, -2, -1e-3, 1e-6, 0.5, 8)]
PAIRS = {
  "normal": (Normal, (MEAN, SCALE), stats.norm(MEAN, SCALE)),
  "student": (StudentT, (MEAN, SCALE, DF), stats.t(DF, MEAN, SCALE)),
}


def _mixture(weights):
  means = np.stack([MEAN - 2, MEAN, MEAN + 30], -1)
  scale = np.stack([SCALE, SCALE / 9, 3 * SCALE], -1)
  with np.errstate(divide="ignore"):
    return NormalMixture(means, scale, np.log(weights)), means, scale


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_continuous_ones_are_scipys(name):
  make, args, known = PAIRS[name]
  with jax.enable_x64(True):
    found = make(*map(jnp.asarray, args))
    np.testing.assert_allclose(found.mean, MEAN)
    variance = np.where(args[-1] > 2, known.var(), np.inf)
    if name == "normal":
      variance = known.var()
    np.testing.assert_allclose(found.variance, variance, rtol=1e-12)
    for y in TARGETS:
      np.testing.assert_allclose(
        found.log_prob(y), known.logpdf(y), rtol=1e-10, atol=1e-12
      )
      np.testing.assert_allclose(found.cdf(y), known.cdf(y), rtol=1e-10)
    for q in (1e-4, 0.3, 0.5, 0.999):
      np.testing.assert_allclose(
        found.quantile(q), known.ppf(q), rtol=1e-9, atol=1e-12
      )


@pytest.mark.slow
def test_student_is_accurate_near_its_centre_in_float32():
  """One of the two forms of its cdf is wrong by 1e-4 there."""
  z = np.linspace(-0.02, 0.02, 9, dtype=np.float32)
  found = StudentT(jnp.zeros(9), jnp.ones(9), jnp.full(9, 4.0)).cdf(z)
  np.testing.assert_allclose(found, stats.t.cdf(z, 4), atol=2e-7)


def test_student_of_many_degrees_is_scipys_in_float32():
  """Gamma functions cancel: at 1e7 degrees a cdf was 1.04."""
  df, z = np.array([[5], [31], [1e3], [1e5], [1e9]]), np.array([-5, -0.9, 0, 3])
  shape = np.zeros((5, 4), np.float32)
  found = StudentT(shape, shape + 1, np.float32(df + shape))
  y, known = np.float32(z + shape), stats.t(df)
  np.testing.assert_allclose(found.cdf(y), known.cdf(y), atol=1e-6)
  np.testing.assert_allclose(found.log_prob(y), known.logpdf(y), atol=1e-5)


@pytest.mark.parametrize("df", [0.7, 5.0, 29.0, 1e5])
def test_derivative_of_a_students_cdf_is_its_density(df):
  """At the mean, beside it, and where squares overflow."""
  z = np.float32([0, -1e-30, 1e-15, 1e-8, -1e-3, 2, 1e10, -1e30, np.inf])
  slope = jax.vmap(jax.grad(lambda z: StudentT(0.0, 1.0, df).cdf(z)))
  np.testing.assert_allclose(slope(z), stats.t.pdf(z, df), 1e-4, 1e-7)


@pytest.mark.slow
def test_mixture_is_the_weighted_sum():
  weights = RNG.dirichlet([1, 2, 3], (5, 2))
  with jax.enable_x64(True):
    found, means, scale = _mixture(weights)
    found = jax.tree.map(jnp.asarray, found)
    parts = stats.norm(means, scale)
    mean = (weights * means).sum(-1)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    square = (weights * (scale**2 + means**2)).sum(-1)
    np.testing.assert_allclose(found.variance, square - mean**2, rtol=1e-10)
    for y in TARGETS:
      at = y[..., None]
      density = (weights * parts.pdf(at)).sum(-1)
      np.testing.assert_allclose(found.log_prob(y), np.log(density), rtol=1e-10)
      cdf = (weights * parts.cdf(at)).sum(-1)
      np.testing.assert_allclose(found.cdf(y), cdf, rtol=1e-10)
    for q in (1e-4, 0.3, RNG.uniform(size=(5, 2))):
      np.testing.assert_allclose(found.cdf(found.quantile(q)), q + 0 * MEAN)


@pytest.mark.slow
def test_mixture_of_one_weight_for_all_numbers_is_of_equal_ones():
  weights = RNG.dirichlet([1, 2, 3], (5, 1))
  one = jax.tree.map(jnp.asarray, _mixture(weights)[0])
  many = jax.tree.map(jnp.asarray, _mixture(np.tile(weights, (1, 2, 1)))[0])
  for a, b in (
    (one.mean, many.mean),
    (one.variance, many.variance),
    (one.log_prob(MEAN), many.log_prob(MEAN)),
    (one.quantile(0.8), many.quantile(0.8)),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
def test_mixture_of_a_weight_of_zero_is_that_of_the_others():
  found = jax.tree.map(jnp.asarray, _mixture(np.array([[[0.0, 1.0, 0.0]]]))[0])
  known = stats.norm(MEAN, SCALE / 9)
  np.testing.assert_allclose(found.quantile(0.9), known.ppf(0.9), rtol=1e-5)
  np.testing.assert_allclose(
    found.log_prob(MEAN), known.logpdf(MEAN), rtol=1e-5
  )
  assert np.isfinite(found.variance).all()


def test_bernoulli_is_scipys():
  known = stats.bernoulli(1 / (1 + np.exp(-LOGITS)))
  found = Bernoulli(jnp.asarray(LOGITS))
  np.testing.assert_allclose(found.mean, known.mean(), rtol=1e-6)
  np.testing.assert_allclose(found.variance, known.var(), rtol=1e-6)
  for y in (0, 1):
    y = np.full((5, 2), y)
    for dtype in (int, np.uint8, bool):
      np.testing.assert_allclose(
        found.log_prob(jnp.asarray(y, dtype)), known.logpmf(y), rtol=1e-5
      )
  for y in (-0.5, 0, 0.5, 1, 2):
    y = np.full((5, 2), y)
    np.testing.assert_allclose(found.cdf(y), known.cdf(y), rtol=1e-6)
  for q in (0.01, 0.4, 0.99):
    np.testing.assert_array_equal(found.quantile(q), known.ppf(q))
  sure = Bernoulli(jnp.array([[200.0, jnp.inf, -jnp.inf, jnp.inf]]))
  y = jnp.array([[0.0, 1, 0, 0]])
  np.testing.assert_array_equal(sure.log_prob(y), [[-200, 0, 0, -np.inf]])
  np.testing.assert_array_equal(sure.mean, [[1, 1, 0, 1]])
  np.testing.assert_array_equal(sure.variance[:, 1:], [[0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_bernoulli_takes_bits_of_any_dtype(dtype):
  bits = np.array([[0], [1]], dtype)
  found = Bernoulli(jnp.full((2, 1), 1.5)).log_prob(bits)
  known = stats.bernoulli(1 / (1 + np.exp(-1.5))).logpmf(bits.astype(int))
  np.testing.assert_allclose(found, known, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
  # The squares of these overflow, or are 0, in float16.
  mean, scale, y = ([[300.0]] * 2, [[2**-14], [4.0]], [[300.0], [0.0]])
  arrays = [jnp.asarray(x, dtype) for x in (mean, scale, y)]
  *one, targets = [np.asarray(x, np.float64) for x in arrays]
  for found, known in (
    (Normal(*arrays[:2]), stats.norm(*one)),
    (StudentT(*arrays[:2], jnp.full((2, 1), 3, dtype)), stats.t(3, *one)),
    (
      NormalMixture(
        *(x[..., None] for x in arrays[:2]), jnp.zeros((2, 1, 1), dtype)
      ),
      stats.norm(*one),
    ),
  ):
    for ours, theirs in (
      (found.log_prob(arrays[2]), known.logpdf(targets)),
      (found.cdf(arrays[2]), known.cdf(targets)),
      (found.variance, known.var()),
      (found.quantile(0.75), known.ppf(0.75)),
    ):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert mean_error(found, arrays[2]) == 45000
  np.testing.assert_allclose(
    Bernoulli(jnp.full((1, 1), 5, dtype)).variance,
    stats.bernoulli(1 / (1 + np.exp(-5))).var(),
    rtol=1e-4,
  )


def test_normal_of_a_tiny_scale_is_finite():
  found = Normal(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-30))
  known = stats.norm.logpdf(1e-30, 0, 1e-30)
  np.testing.assert_allclose(found.log_prob(jnp.full((1, 1), 1e-30)), known)


def test_student_of_few_degrees_has_far_quantiles():
  for df, q in ((0.1, 0.001), (0.1, 0.999), (0.01, 0.3), (1.0, 1e-20)):
    array = jnp.full((1, 1), 1.0)
    found = StudentT(array, array * 3, array * df).quantile(q)
    np.testing.assert_allclose(found, 1 + 3 * stats.t(df).ppf(q), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["student", "mixture"])
def test_derivatives_of_quantiles_are_finite_differences(name):
  def quantile(p):
    q, mean, scale = (x.reshape(1, 1) for x in p)
    if name == "student":
      return StudentT(mean, scale, jnp.full((1, 1), 4.0)).quantile(q)[0, 0]
    means, scales = (
      jnp.stack([mean, mean + 2], -1),
      jnp.stack([scale, 1 + 0 * scale], -1),
    )
    weights = jnp.log(jnp.array([[[0.25, 0.75]]]))
    return NormalMixture(means, scales, weights).quantile(q)[0, 0]

  with jax.enable_x64(True):
    p, step = jnp.array([0.8, 1.0, 0.5]), 1e-4 * jnp.eye(3)
    for fn, derivative in (
      (quantile, jax.grad(quantile)),
      (jax.grad(quantile), jax.jacfwd(jax.grad(quantile))),
    ):
      known = [(fn(p + h) - fn(p - h)) / 2e-4 for h in step]
      np.testing.assert_allclose(derivative(p), known, rtol=1e-5, atol=1e-6)


def test_densities_integrate_to_the_cdf():
  """An identity that no library is asked for."""
  found = StudentT(*(jnp.array([x]) for x in (0.5, 0.8, 3.0)))
  area, _ = integrate.quad(
    lambda y: float(jnp.exp(found.log_prob(jnp.array([y])))[0]), -60, 1.3
  )
  np.testing.assert_allclose(area, found.cdf(jnp.array([1.3]))[0], atol=1e-5)


def test_scores_are_means_over_numbers():
  found, known = Normal(jnp.asarray(MEAN), jnp.asarray(SCALE)), PAIRS["normal"]
  y = TARGETS[1]
  density = known[2].logpdf(y).mean()
  np.testing.assert_allclose(log_likelihood(found, y), density, rtol=1e-5)
  np.testing.assert_allclose(
    negative_log_likelihood(found, y), -density, rtol=1e-5
  )
  np.testing.assert_allclose(
    mean_error(found, y), ((2 * SCALE) ** 2).mean(), rtol=1e-5
  )


def test_the_true_distribution_has_the_least_loss():
  """Over scales, for errors of mean square 4: `log s + 2 / s^2` at s = 2."""
  y = jnp.array([[-2.0], [2.0]])
  slope = jax.grad(
    lambda s: negative_log_likelihood(Normal(0 * y, s + 0 * y), y)
  )
  np.testing.assert_allclose(slope(2.0), 0, atol=1e-6)
  assert slope(1.9) < 0 < slope(2.1)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [log_likelihood, mean_error])
def test_masked_examples_are_not_scored(metric):
  mask = np.array([True, False, True, True, False])
  y = jnp.asarray(TARGETS[1])
  found = jax.tree.map(jnp.asarray, _mixture(np.full((5, 1, 3), 1 / 3))[0])
  real = jax.tree.map(lambda x: x[mask], (found, y))
  np.testing.assert_allclose(
    over_examples(metric, found, y, jnp.asarray(mask)),
    metric(*real),
    rtol=1e-5,
  )


def test_targets_of_another_shape_are_refused():
  found = Normal(jnp.asarray(MEAN), jnp.asarray(SCALE))
  with pytest.raises(ValueError, match=r"\(5, 2\) and targets of shape \(5,\)"):
    negative_log_likelihood(found, jnp.zeros(5))


def test_evaluate_scores_distributions_with_masks():
  """A learner of the support's mean; the padding of the query is far off."""

  def tasks(rng):
    y = jax.random.normal(rng, (6, 1))
    mask = jnp.array([True, True, False])
    query = jnp.where(mask[:, None], y[3:], 1e6)
    x = jnp.zeros((3, 1))
    return Episode(Batch(x, y[:3]), Batch(x, query, mask))

  def predict(center, inputs, mask=None):
    del mask
    return Normal(center + 0 * inputs, 1 + 0 * inputs)

  learner = MetaLearner(
    lambda *_: 0.0, lambda p, s, rng: s.targets.mean(), predict, lambda *_: None
  )
  found = evaluate(
    learner,
    0.0,
    tasks,
    {"nll": negative_log_likelihood, "error": mean_error},
    jax.random.key(0),
    num_tasks=2000,
    task_chunk=500,
  )
  # The error's variance is 1 + 1/3, and the density that of N(0, 1).
  expected = 4 / 3
  assert abs(found["error"].mean - expected) < 4 * found["error"].ci95 / 1.96
  np.testing.assert_allclose(
    found["nll"].mean,
    0.5 * np.log(2 * np.pi) + found["error"].mean / 2,
    rtol=1e-5,
  )
