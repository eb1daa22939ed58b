"""What every learner in context owes: sets, padding, queries, gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metajax.predictive import negative_log_likelihood

import metajax
from metajax.context import of_marginals
from metajax.context.joint import log_density
from metajax.context.registry import JOINT, LEARNERS, build
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
SUPPORT, QUERY, TASKS = 5, 4, 3
SMALL = {
  **dict.fromkeys(("cnp", "canp", "alpaca"), {"width": 16}),
  "anp": {"width": 16, "num_latent": 3, "num_eval_samples": 5},
  "convcnp": {"channels": 4, "layers": 2, "density": 8},
  **dict.fromkeys(
    ("tnp_d", "tnp_a", "tnp_nd", "prior_fitted"),
    {"width": 16, "hidden": 24, "layers": 2, "heads": 2},
  ),
}
EDGES = np.array([-2.0, -1.0, -0.2, 0.3, 1.0, 2.5])


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _family(rng):
  """Curves `a sin(2 x + b)` with noise; masks of a random length."""
  keys = jax.random.split(rng, 5)
  a, b = jax.random.uniform(keys[0]), 6 * jax.random.uniform(keys[1])
  n = SUPPORT + QUERY
  x = jax.random.uniform(keys[2], (n, 1), minval=-2, maxval=2)
  y = a * jnp.sin(2 * x + b) + 0.1 * jax.random.normal(keys[3], (n, 1))
  counts = jax.random.randint(keys[4], (2,), 1, jnp.array([SUPPORT, QUERY]) + 1)
  return Episode(
    Batch(x[:SUPPORT], y[:SUPPORT], jnp.arange(SUPPORT) < counts[0]),
    Batch(x[SUPPORT:], y[SUPPORT:], jnp.arange(QUERY) < counts[1]),
  )


class Case:
  """A small learner with random parameters, its functions compiled."""

  def __init__(self, name):
    self.name = name
    edges = EDGES if name == "prior_fitted" else None
    self.learner = build(
      name,
      edges=edges,
      metrics={"nll": negative_log_likelihood},
      **SMALL[name],
    )
    self.params = self.learner.init(RNG, jnp.zeros((SUPPORT, 1)))
    self.solve = jax.jit(self._solve)
    self.meta_grad = jax.jit(self.learner.meta_grad)

  def _solve(self, support, inputs, mask=None):
    task_params = self.learner.adapt(self.params, support, RNG)
    return self.learner.predict(task_params, inputs, mask=mask)


@pytest.fixture(scope="module", params=sorted(LEARNERS))
def case(request):
  return Case(request.param)


@functools.cache
def _task():
  support, query = _family(jax.random.key(1))
  return Episode(support._replace(mask=None), query._replace(mask=None))


def _summary(predictions, targets):
  """Numbers `[n, d]` that tell distributions apart."""
  return np.stack(
    [
      predictions.mean,
      predictions.variance,
      predictions.log_prob(targets),
      predictions.cdf(targets),
      predictions.quantile(0.3),
    ]
  )


def test_support_is_a_set(case):
  support, query = _task()
  one = case.solve(support, query.inputs)
  turned = jax.tree.map(lambda x: x[::-1], support)
  other = case.solve(turned, query.inputs)
  expected, found = (_summary(p, query.targets) for p in (one, other))
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
  # And not only because the support has no effect.
  changed = support._replace(targets=support.targets + 1)
  assert np.abs(case.solve(changed, query.inputs).mean - one.mean).max() > 1e-4


def test_padding_has_no_effect(case):
  support, query = _task()
  expected = case.solve(support, query.inputs)
  junk = 7.0 * jnp.ones((3, 1))
  padded = Batch(
    jnp.concatenate([support.inputs, junk]),
    jnp.concatenate([support.targets, junk]),
    jnp.arange(SUPPORT + 3) < SUPPORT,
  )
  found = case.solve(padded, query.inputs)
  both = (_summary(p, query.targets) for p in (found, expected))
  np.testing.assert_allclose(*both, rtol=1e-9, atol=1e-9)
  inputs = jnp.concatenate([junk, query.inputs])
  targets = jnp.concatenate([junk, query.targets])
  mask = jnp.arange(QUERY + 3) >= 3
  found = case.solve(support, inputs, mask)
  np.testing.assert_allclose(
    _summary(found, targets)[:, 3:],
    _summary(expected, query.targets),
    rtol=1e-9,
    atol=1e-9,
  )
  np.testing.assert_allclose(
    log_density(found, targets, mask), log_density(expected, query.targets)
  )


def test_predictions_do_not_depend_on_other_queries(case):
  """But for the covariances of TNP-ND; its means do not."""
  support, query = _task()
  together = case.solve(support, query.inputs)
  others = query.inputs.at[1:].set(1.9)
  found = case.solve(support, others)
  if case.name == "tnp_nd":
    np.testing.assert_allclose(found.mean[0], together.mean[0], rtol=1e-9)
    return
  one, other = (_summary(p, query.targets)[:, 0] for p in (together, found))
  np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_nothing_to_read_is_a_prediction_too(case):
  """Without support, and with one of padding alone."""
  support, query = _task()
  nothing = case.solve(
    Batch(jnp.zeros((0, 1)), jnp.zeros((0, 1))), query.inputs
  )
  padding = case.solve(
    support._replace(mask=jnp.zeros(SUPPORT, bool)), query.inputs
  )
  both = (_summary(p, query.targets) for p in (nothing, padding))
  np.testing.assert_allclose(*both, rtol=1e-9, atol=1e-9)


@functools.cache
def _episodes():
  return jax.jit(jax.vmap(_family))(jax.random.split(RNG, TASKS))


def test_gradients_are_finite_and_those_of_the_loss(case):
  grads, metrics = case.meta_grad(case.params, _episodes(), RNG)
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, case.params)
  chex.assert_tree_all_finite(grads)
  assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["nll"])
  draw = np.random.default_rng(0)
  direction = jax.tree.map(lambda x: draw.normal(size=x.shape), case.params)

  def loss(step):
    moved = jax.tree.map(lambda x, d: x + step * d, case.params, direction)
    return case.meta_grad(moved, _episodes(), RNG)[1]["loss"]

  pairs = zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
  slope = sum(np.vdot(g, d) for g, d in pairs)
  # Kinks of ReLU are met by few of the steps.
  np.testing.assert_allclose(
    slope, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-4, atol=1e-6
  )


def test_evaluation_scores_them_with_masks(case):
  found = metajax.evaluate(
    case.learner,
    case.params,
    _family,
    {
      "nll": of_marginals(negative_log_likelihood),
      "log_density": log_density,
    },
    RNG,
    num_tasks=4,
    task_chunk=4,
  )
  assert np.isfinite([found["nll"].mean, found["log_density"].mean]).all()
  if case.name not in JOINT:
    np.testing.assert_allclose(
      found["nll"].mean, -found["log_density"].mean, rtol=1e-6
    )


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: build("gp"), "learner 'gp': must be one of .*'cnp'"),
    (lambda: build("prior_fitted"), "edges: prior_fitted needs them; "),
    (
      lambda: build("prior_fitted", edges=[0.0, 1.0, 1.0, 2.0]),
      r"edges of shape \(4,\): must be 4 or more increasing numbers",
    ),
    (lambda: build("canp", width=20), "width=20: must be a multiple of 8"),
    (lambda: build("anp", objective="vi"), "objective='vi': must be one of"),
    (lambda: build("anp", num_samples=0), "num_samples=0, .*1 or more"),
    (
      lambda: build("tnp_d", heads=5),
      "heads=5: .* heads must divide the width",
    ),
    (lambda: build("tnp_nd", covariance="full"), "covariance='full': must be"),
    (lambda: build("tnp_nd", rank=0), "rank=0, .*: must be 1 or more"),
    (lambda: build("alpaca", noise=0.0), "noise=0.0: must be above 0"),
    (lambda: build("convcnp", kernel=4), "kernel=4, .* the kernel odd"),
    (lambda: build("convcnp", bounds=(1.0, 0.0)), r"bounds=\(1.0, 0.0\)"),
  ],
)
def test_bad_arguments_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_targets_that_do_not_fit_are_named():
  learner = build("cnp", width=16)
  params = learner.init(RNG, jnp.zeros((2, 1)))
  with pytest.raises(ValueError, match="int.* given, must be floats"):
    learner.adapt(params, Batch(jnp.zeros((2, 1)), jnp.zeros(2, int)), RNG)
  with pytest.raises(ValueError, match="targets of 3 numbers: must be num_out"):
    learner.adapt(params, Batch(jnp.zeros((2, 1)), jnp.zeros((2, 3))), RNG)
