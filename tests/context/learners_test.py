"""What every learner in context owes: sets, padding, queries, gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.context import of_marginals
from metajax.context.joint import log_density
from metajax.context.registry import JOINT, LEARNERS, build
from metajax.predictive import negative_log_likelihood
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
SUPPORT, QUERY, TASKS = 5, 4, 3
SMALL = {
  **dict.fromkeys(("cnp", "canp", "alpaca"), {"width": 8}),
  "anp": {"width": 8, "num_latent": 3, "num_eval_samples": 5},
  "convcnp": {"width": 4, "layers": 2, "density": 8},
  **dict.fromkeys(
    ("tnp_d", "tnp_nd", "prior_fitted"),
    {"width": 8, "hidden": 12, "layers": 1, "heads": 2},
  ),
  "tnp_a": {"width": 8, "hidden": 12, "layers": 2, "heads": 2},
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
    self.learner = build(
      name,
      edges=EDGES if name == "prior_fitted" else None,
      metrics={"nll": negative_log_likelihood},
      **SMALL[name],
    )
    like = jax.eval_shape(self.learner.init, RNG, jnp.zeros((SUPPORT, 1)))
    draw = np.random.default_rng(0)
    self.params = jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape), like)
    self.solve = jax.jit(self._solve)
    self.meta_grad = jax.jit(self.learner.meta_grad)

  def _solve(self, support, query):
    """Returns numbers `[n, 5]` of each prediction, and the joint density."""
    task_params = self.learner.adapt(self.params, support, RNG)
    predictions = self.learner.predict(
      task_params, query.inputs, mask=query.mask
    )
    numbers = [
      predictions.mean,
      predictions.variance,
      predictions.log_prob(query.targets),
      predictions.cdf(query.targets),
      predictions.quantile(0.3),
    ]
    density = log_density(predictions, query.targets, query.mask)
    return jnp.concatenate(numbers, axis=1), density


@pytest.fixture(scope="module", params=sorted(LEARNERS))
def case(request):
  return Case(request.param)


@functools.cache
def _task():
  """A task without masks."""
  support, query = jax.jit(_family)(jax.random.key(1))
  return Episode(support._replace(mask=None), query._replace(mask=None))


def _padded(batch, place=slice(2, None), junk=7.0):
  """Puts a batch at places of one with 3 more examples, which are padding."""
  n = len(batch.targets) + 3
  inputs, targets = np.full((n, 1), junk), np.full((n, 1), junk)
  mask = np.zeros(n, bool)
  rows = np.arange(n)[place][: n - 3]
  inputs[rows], targets[rows], mask[rows] = batch.inputs, batch.targets, True
  return Batch(inputs, targets, mask)


def _same(one, other):
  np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_support_is_a_set(case):
  support, query = _task()
  query = _padded(query)
  numbers, density = case.solve(_padded(support), query)
  turned = jax.tree.map(lambda x: x[::-1], support)
  found, same = case.solve(_padded(turned), query)
  _same(found[query.mask], numbers[query.mask])
  _same(same, density)
  # And not only because the support has no effect.
  changed = support._replace(targets=support.targets + 1)
  moved = case.solve(_padded(changed), query)[0] - numbers
  assert np.abs(moved[query.mask, 0]).max() > 1e-4


@pytest.mark.slow
def test_padding_has_no_effect(case):
  """Neither how much there is, nor where, nor what is in it."""
  support, query = _task()
  numbers, density = case.solve(support, query)
  for place, junk in ((slice(2, None), 7.0), (slice(None), -1.0)):
    padded = _padded(query, place, junk)
    found, same = case.solve(_padded(support, place, junk), padded)
    _same(found[padded.mask], numbers)
    _same(same, density)


def test_predictions_do_not_depend_on_other_queries(case):
  """But for the covariances of TNP-ND; its means do not."""
  support, query = (_padded(x) for x in _task())
  first = np.flatnonzero(query.mask)[0]
  inputs = np.where(np.arange(len(query.mask)) == first, 0, 1)[:, None]
  moved = query._replace(inputs=query.inputs + inputs)
  one, other = (case.solve(support, q)[0][first] for q in (query, moved))
  count = 1 if case.name == "tnp_nd" else None
  _same(one[:count], other[:count])


def test_support_of_padding_alone_is_a_prediction_too(case):
  support, query = (_padded(x) for x in _task())
  nothing = support._replace(mask=np.zeros_like(support.mask))
  numbers, density = case.solve(nothing, query)
  assert np.isfinite(numbers[query.mask]).all() and np.isfinite(density)
  if case.name in ("canp", "tnp_d"):
    empty = Batch(np.zeros((0, 1)), np.zeros((0, 1)))
    _same(case.solve(empty, query)[0][query.mask], numbers[query.mask])


@functools.cache
def _episodes():
  return jax.jit(jax.vmap(_family))(jax.random.split(RNG, TASKS))


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
  "case", ["cnp", "tnp_a"], indirect=True, scope="module"
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
      r"edges of shape \(4,\): must be 4 or more finite numbers",
    ),
    (lambda: build("canp", width=20), "width=20: must be a multiple of 8"),
    (lambda: build("anp", objective="vi"), "objective='vi': must be one of"),
    (lambda: build("anp", num_samples=0), "num_samples=0: must be 1 or more"),
    (
      lambda: build("tnp_d", heads=5),
      "heads=5: heads must divide the width",
    ),
    (lambda: build("tnp_nd", covariance="full"), "covariance='full': must be"),
    (lambda: build("tnp_nd", rank=0), "rank=0: must be 1 or more"),
    (lambda: build("alpaca", noise=0.0), "noise=0.0: must be above 0"),
    (lambda: build("convcnp", kernel=4), "kernel=4: must be odd"),
    (lambda: build("convcnp", bounds=(1.0, 0.0)), r"bounds=\(1.0, 0.0\)"),
    (lambda: build("convcnp", bounds=(0.0, np.inf)), r"bounds=\(0.0, inf\)"),
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
