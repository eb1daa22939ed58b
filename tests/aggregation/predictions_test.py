"""Pools of predictions, against numpy float64 and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from metajax.aggregation import (
  Gaussian,
  average_probabilities,
  log_pool,
  mixture_moments,
  posterior_weights,
  stacking_weights,
  weighted_vote,
)

LOGITS = 3 * np.random.default_rng(0).normal(size=(4, 6, 5))
WEIGHTS = np.array([1.0, 0.0, 2.0, 5.0])
POOLS = [average_probabilities, log_pool, weighted_vote]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_average_is_of_probabilities_not_of_logits(weights):
  probabilities = scipy.special.softmax(LOGITS, axis=-1)
  expected = np.average(probabilities, axis=0, weights=weights)
  found = jnp.exp(average_probabilities(jnp.asarray(LOGITS), weights))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_log_pool_is_the_normalised_geometric_mean(weights):
  log_p = scipy.special.log_softmax(LOGITS, axis=-1)
  mean = np.exp(np.average(log_p, axis=0, weights=weights))
  expected = mean / mean.sum(-1, keepdims=True)
  found = jnp.exp(log_pool(jnp.asarray(LOGITS), weights))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_votes_are_counted(weights):
  shares = np.ones(4) / 4 if weights is None else weights / weights.sum()
  expected = np.zeros((6, 5))
  for model, share in zip(LOGITS, shares, strict=True):
    for example, row in enumerate(model):
      expected[example, np.argmax(row)] += share
  np.testing.assert_allclose(
    weighted_vote(jnp.asarray(LOGITS), weights), expected, rtol=1e-6
  )


@pytest.mark.parametrize("pool", POOLS)
def test_order_of_the_models_and_scale_of_the_weights_do_not_matter(pool):
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(
    pool(jnp.asarray(LOGITS)[order], 9 * WEIGHTS[order]),
    pool(jnp.asarray(LOGITS), WEIGHTS),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("pool", [average_probabilities, log_pool])
def test_equal_models_are_their_own_pool(pool):
  equal = jnp.broadcast_to(LOGITS[0], LOGITS.shape)
  np.testing.assert_allclose(
    pool(equal, WEIGHTS),
    scipy.special.log_softmax(LOGITS[0], axis=-1),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize("pool", [average_probabilities, log_pool])
def test_huge_logits_do_not_overflow(pool):
  logits = jnp.array([[1e4, 0.0], [1e4, 0.0]])
  np.testing.assert_allclose(pool(logits), [0.0, -1e4], rtol=1e-6)


def test_moments_are_those_of_samples_of_the_mixture():
  draw = np.random.default_rng(1)
  means = np.array([[0.0, 1.0], [2.0, 1.0], [-1.0, 5.0]])
  variances = np.array([[1.0, 0.1], [0.25, 0.0], [4.0, 1.0]])
  weights = np.array([0.5, 0.3, 0.2])
  mean, variance = mixture_moments(
    Gaussian(jnp.asarray(means), jnp.asarray(variances)), 10 * weights
  )
  n = 400_000
  member = draw.choice(3, n, p=weights)
  samples = draw.normal(means[member], np.sqrt(variances[member]))
  # 5 standard errors of a mean, and of a variance by the fourth moment.
  error = samples.std(0) / np.sqrt(n)
  assert (np.abs(mean - samples.mean(0)) < 5 * error).all()
  squares = np.square(samples - samples.mean(0))
  error = squares.std(0) / np.sqrt(n)
  assert (np.abs(variance - samples.var(0)) < 5 * error).all()


def test_moments_by_hand():
  """Two points: their mean, and the variance of a fair coin between them."""
  mean, variance = mixture_moments(
    Gaussian(jnp.array([1.0, 5.0]), jnp.array([0.0, 2.0]))
  )
  assert (mean, variance) == (3.0, 4.0 + 1.0)


def test_posterior_is_bayes_rule():
  likelihoods = np.array([[0.5, 0.2, 0.9], [0.4, 0.6, 0.3]])
  found = posterior_weights(jnp.log(likelihoods), [1, 3])
  mass = np.array([1, 3]) * likelihoods.prod(axis=1)
  np.testing.assert_allclose(found, mass / mass.sum(), rtol=1e-5)


def test_posterior_of_a_prior_of_zero_stays_zero():
  found = posterior_weights(jnp.array([[-1.0], [-50.0]]), [0, 1])
  np.testing.assert_array_equal(found, [0, 1])


def _log_likelihoods(models=4, examples=200):
  draw = np.random.default_rng(2)
  return np.log(draw.uniform(0.01, 1, size=(models, examples)))


def test_stacking_finds_the_maximum_that_scipy_finds():
  log_p = _log_likelihoods()

  def objective(w):
    return -np.mean(scipy.special.logsumexp(log_p, axis=0, b=w[:, None]))

  best = scipy.optimize.minimize(
    objective,
    np.full(4, 0.25),
    bounds=[(0, 1)] * 4,
    constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    options={"ftol": 1e-12},
  )
  found = np.asarray(stacking_weights(jnp.asarray(log_p)))
  np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
  assert objective(np.float64(found)) < best.fun + 1e-6
  np.testing.assert_allclose(found, best.x, atol=1e-3)


def test_no_step_of_stacking_lowers_the_likelihood():
  log_p = jnp.asarray(_log_likelihoods())
  values = [
    jax.nn.logsumexp(
      log_p, axis=0, b=stacking_weights(log_p, n)[:, None]
    ).mean()
    for n in (0, 1, 2, 5, 20)
  ]
  assert (np.diff(values) > -1e-6).all()
  assert values[-1] > values[0] + 1e-4


def test_stacking_keeps_two_models_that_each_know_half():
  """Where Bayesian averaging takes one, by a hair."""
  log_p = jnp.log(jnp.array([[0.9, 0.1] * 50 + [0.9], [0.1, 0.9] * 50 + [0.1]]))
  np.testing.assert_allclose(stacking_weights(log_p), [0.5, 0.5], atol=0.02)
  np.testing.assert_allclose(posterior_weights(log_p), [0.9, 0.1], rtol=1e-3)


INF = np.inf
# Models, one example, classes: the last is masked by all, another by some.
MASKED = np.array([[1.0, 2.0, 0.5, -INF], [0.0, -INF, 1.0, -INF]])


def _average(probabilities, weights):
  return np.log(np.einsum("m,mc->c", weights, probabilities))


def _product(probabilities, weights):
  mass = np.prod(probabilities ** weights[:, None], axis=0)
  return np.log(mass / mass.sum())


@pytest.mark.slow
@pytest.mark.parametrize("weights", [[0.3, 0.7], [1.0, 0.0]])
@pytest.mark.parametrize(
  "pool, by_hand", [(average_probabilities, _average), (log_pool, _product)]
)
def test_masked_classes_are_pooled(pool, by_hand, weights):
  """Values, and slopes against finite differences, eagerly and compiled."""
  weights = np.array(weights)
  with np.errstate(divide="ignore"):
    expected = by_hand(scipy.special.softmax(MASKED, axis=-1), weights)
  for fn in (pool, jax.jit(pool)):
    found = fn(jnp.asarray(MASKED, jnp.float32), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  kept = np.isfinite(expected)
  direction = np.array([0.3, -1.0, 2.0, 1.0])[kept]

  def score(logits, weights):
    log_p = pool(logits, weights)
    return jnp.where(kept, jnp.exp(log_p), 0)[kept] @ direction

  def nudged(entry, step):
    logits = MASKED.copy()
    logits[entry] += step
    p = np.exp(by_hand(scipy.special.softmax(logits, axis=-1), weights))
    return p[kept] @ direction

  by_logits, by_weights = jax.grad(score, argnums=(0, 1))(
    jnp.asarray(MASKED, jnp.float32), jnp.asarray(weights, jnp.float32)
  )
  assert np.isfinite(by_weights).all()
  with np.errstate(divide="ignore"):
    for entry in np.ndindex(MASKED.shape):
      slope = (nudged(entry, 1e-5) - nudged(entry, -1e-5)) / 2e-5
      np.testing.assert_allclose(by_logits[entry], slope, atol=1e-6)


def test_no_class_is_left_where_the_models_rule_out_them_all():
  logits = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])
  np.testing.assert_array_equal(log_pool(logits), [-INF, -INF])
  np.testing.assert_allclose(
    average_probabilities(logits), np.log([0.5, 0.5]), rtol=1e-6
  )
  # A finite mask is a number like others.
  np.testing.assert_allclose(
    log_pool(jnp.maximum(logits, -1e9)), np.log([0.5, 0.5]), rtol=1e-6
  )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_pooled_in_float32(dtype):
  """Of 300 models, whose sum would stand still, or be inexact."""
  draw = np.random.default_rng(4)
  logits = jnp.asarray(3 * draw.normal(size=(300, 5)), dtype)
  weights = jnp.asarray(draw.uniform(0.5, 1, 300), dtype)
  exact, share = np.float64(logits), np.float64(weights)
  share /= share.sum()
  p = scipy.special.softmax(exact, axis=-1)
  for pool, by_hand in (
    (average_probabilities, _average),
    (log_pool, _product),
  ):
    found = pool(logits, weights)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_hand(p, share), rtol=1e-4, atol=1e-5)
  mean, variance = mixture_moments(
    Gaussian(logits, jnp.zeros_like(logits)), weights
  )
  np.testing.assert_allclose(mean, share @ exact, rtol=1e-3, atol=1e-5)
  expected = share @ (exact - share @ exact) ** 2
  np.testing.assert_allclose(variance, expected, rtol=1e-4)
  likelihoods = jnp.asarray(-draw.uniform(0, 2, (2, 2000)), dtype)
  found = posterior_weights(likelihoods / 1024)
  assert found.dtype == jnp.float32
  expected = scipy.special.softmax(np.float64(likelihoods / 1024).sum(-1))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert stacking_weights(likelihoods, 3).dtype == jnp.float32


def test_posterior_keeps_its_digits_over_very_many_examples():
  """The sums are -2e6 each, where float32 tells 0.1 from nothing."""
  n = 1_000_000
  log_p = np.full((2, n), -2.0, np.float32)
  log_p[0, :100] += 0.003
  found = posterior_weights(jnp.asarray(log_p))
  expected = scipy.special.expit(np.float64(log_p[0] - log_p[1]).sum())
  np.testing.assert_allclose(found[0], expected, rtol=1e-4)


@pytest.mark.slow
def test_posterior_of_impossible_examples_is_the_limit_of_small_likelihoods():
  ruled_out = np.array(
    [[-1.0, -INF, -1.0], [-2.0, -3.0, -1.5], [0, -INF, -INF]]
  )
  found = jax.jit(posterior_weights)(jnp.asarray(ruled_out))
  np.testing.assert_array_equal(found, [0, 1, 0])
  # Each misses one: the other examples decide.
  all_miss = np.array([[-1.0, -INF, -1.0], [-2.0, -0.5, -INF], [0, -INF, -INF]])
  mass = np.exp(np.where(np.isinf(all_miss), -60, all_miss).sum(-1)) * [1, 3, 5]
  np.testing.assert_allclose(
    posterior_weights(jnp.asarray(all_miss), [1, 3, 5]),
    mass / mass.sum(),
    rtol=1e-5,
    atol=1e-20,
  )
  # A model of no prior is not the one with the fewest.
  found = posterior_weights(jnp.asarray(ruled_out), [1, 0, 1])
  np.testing.assert_array_equal(found, [1, 0, 0])
  grads = jax.grad(lambda x: posterior_weights(x, [1, 0, 3])[0])(
    jnp.asarray(all_miss)
  )
  assert np.isfinite(grads).all()


@pytest.mark.slow
def test_stacking_of_impossible_examples_is_that_of_tiny_likelihoods():
  log_p = _log_likelihoods(3, 60)
  log_p[0, :20] = -INF
  log_p[1, 15:40] = -INF
  with_none = np.concatenate([log_p, np.full((3, 7), -INF)], axis=1)
  expected = stacking_weights(jnp.asarray(np.maximum(log_p, -60)), 3000)
  for impossible in (log_p, with_none):
    found = jax.jit(stacking_weights, static_argnums=1)(
      jnp.asarray(impossible), 3000
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
  never = jnp.asarray(np.concatenate([log_p, np.full((1, 60), -INF)]))
  np.testing.assert_allclose(
    stacking_weights(never, 3000), [*expected, 0], rtol=1e-3, atol=1e-5
  )
  grads = jax.grad(lambda x: stacking_weights(x, 10)[0])(never)
  assert np.isfinite(grads).all()
  assert np.abs(grads[0, 20:]).max() > 1e-4


@pytest.mark.parametrize("pool", POOLS)
def test_predictions_that_are_none_are_named(pool):
  for bad in ([0.0, jnp.nan], [0.0, jnp.inf], [-jnp.inf, -jnp.inf]):
    with pytest.raises(ValueError, match="model 1 is not finite"):
      pool(jnp.array([[0.0, -jnp.inf], bad]))
  with pytest.raises(ValueError, match="must be finite and 0 or more"):
    pool(jnp.zeros((2, 3)), [1.0, -1.0])


@pytest.mark.parametrize("weigh", [posterior_weights, stacking_weights])
def test_sums_over_the_examples_are_refused(weigh):
  """Of sums `[models]` the posterior was uniform."""
  with pytest.raises(ValueError, match=r"^log_likelihoods of shape \(2,\)"):
    weigh(jnp.array([-1.0, -2.0]))


def test_negative_steps_are_named():
  with pytest.raises(ValueError, match="num_steps=-1"):
    stacking_weights(jnp.zeros((2, 3)), -1)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 3)])
def test_variances_of_another_shape_are_not_broadcast(shape):
  means, variances = jnp.ones((2, 3)), jnp.ones(shape)
  with pytest.raises(ValueError):
    mixture_moments(Gaussian(means, variances))


@pytest.mark.parametrize(
  "combine", [average_probabilities, log_pool, weighted_vote]
)
def test_logits_of_models_alone_are_named(combine):
  with pytest.raises(ValueError, match=r"must be \[models, ..., classes\]"):
    combine(jnp.ones(3))


def test_stacking_needs_an_example():
  with pytest.raises(ValueError, match="of no example"):
    stacking_weights(jnp.zeros((2, 0)))
