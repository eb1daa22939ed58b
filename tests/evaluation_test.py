"""Evaluation: intervals, the same tasks whatever the chunks, transduction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.evaluation import (
  Estimate,
  estimate,
  estimate_over_seeds,
  evaluate,
  evaluation_keys,
  evaluator,
)
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.types import Batch, Episode, MetaLearner

RNG = jax.random.key(7)
SINUSOID = sinusoid(3, 2)


def _offset_learner():
  """Adapts by adding the support's mean target and noise from its key."""

  def adapt(meta_params, support, rng):
    return meta_params + support.targets.mean() + jax.random.normal(rng)

  def predict(task_params, inputs):
    return task_params * inputs

  return MetaLearner(lambda rng, inputs: 0.0, adapt, predict, lambda *_: None)


def _values_by_hand(meta_params, num_tasks):
  """Task i is drawn from the first half of the i-th key; one at a time."""
  learner = _offset_learner()
  values = []
  for key in evaluation_keys(RNG, num_tasks):
    task_key, adapt_key = jax.random.split(key)
    support, query = SINUSOID(task_key)
    task_params = learner.adapt(meta_params, support, adapt_key)
    predictions = learner.predict(task_params, query.inputs)
    errors = np.asarray(predictions - query.targets, np.float64)
    values.append(np.mean(errors**2))
  return np.array(values)


def test_interval_of_five_values():
  # The mean is 5/2, the variance (9/4 + 1/4 + 1/4 + 9/4) / (4 - 1) = 5/3 and
  # the half width 1.96 sqrt(5/3) / sqrt(4).
  found = estimate([1, 2, 3, 4])
  assert found.num_tasks == 4
  np.testing.assert_allclose(found.mean, 2.5, rtol=1e-12)
  np.testing.assert_allclose(found.ci95, 0.98 * np.sqrt(5 / 3), rtol=1e-12)


def test_interval_of_accuracies_is_the_binomial_one():
  # k of n ones: variance p (1 - p) n / (n - 1).
  values = np.repeat([1.0, 0.0], [150, 450])
  found = estimate(jnp.asarray(values))
  np.testing.assert_allclose(
    found, (0.25, 1.96 * np.sqrt(0.25 * 0.75 / 599), 600), rtol=1e-12
  )


def test_interval_covers_the_true_mean_in_95_percent():
  # Exponential values of mean 1. The coverage of 2000 intervals has standard
  # deviation sqrt(.95 * .05 / 2000) = 0.005; skewness costs it about 0.002.
  samples = np.random.default_rng(0).exponential(size=(2000, 600))
  covered = [abs(e.mean - 1) < e.ci95 for e in map(estimate, samples)]
  assert 0.93 < np.mean(covered) < 0.97


def test_large_float32_values_are_summed_in_float64():
  # In float32 the variance of these would be lost: 1e4 + {0, 1}.
  values = np.float32(1e4) + np.arange(600, dtype=np.float32) % 2
  found = estimate(values)
  np.testing.assert_allclose(found.mean, 10000.5, rtol=1e-12)
  np.testing.assert_allclose(found.ci95, 1.96 * 0.5 / np.sqrt(599), rtol=1e-10)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (600, 2)])
def test_interval_needs_one_value_for_each_of_two_tasks(shape):
  with pytest.raises(ValueError, match="at least 2 tasks"):
    estimate(np.zeros(shape))


@pytest.mark.parametrize("means", [[], 0.5])
def test_interval_over_seeds_needs_one_mean_of_each(means):
  with pytest.raises(ValueError, match="must be one of each training"):
    estimate_over_seeds(means, 600)


# 7 tasks: chunks that divide them, that do not, and larger than all of them.
@pytest.mark.slow
@pytest.mark.parametrize("task_chunk", [1, 2, 3, 7, 16])
def test_values_are_those_of_a_loop_over_tasks_for_every_chunk(task_chunk):
  score = evaluator(
    _offset_learner(),
    SINUSOID,
    {"mse": mean_squared_error},
    RNG,
    num_tasks=7,
    task_chunk=task_chunk,
  )
  for meta_params in (0.0, 2.0):
    np.testing.assert_allclose(
      score(meta_params)["mse"], _values_by_hand(meta_params, 7), rtol=1e-4
    )


def test_one_program_scores_learners_built_from_arrays():
  def build(factor):
    traces.append(factor)
    learner = _offset_learner()

    def predict(task_params, inputs):
      return factor * learner.predict(task_params, inputs)

    return learner._replace(predict=predict)

  traces = []
  metrics = {"mse": mean_squared_error}
  score = evaluator(build, SINUSOID, metrics, RNG, num_tasks=5)
  once = evaluator(_offset_learner(), SINUSOID, metrics, RNG, num_tasks=5)
  values = [score(2.0, factor)["mse"] for factor in (1.0, 0.0)]
  np.testing.assert_allclose(values[0], once(2.0)["mse"], rtol=1e-5)
  assert np.abs(values[1] - values[0]).min() > 1e-3
  assert len(traces) == 1


def test_evaluate_is_the_interval_of_the_values():
  found = evaluate(
    _offset_learner(),
    1.0,
    SINUSOID,
    {"mse": mean_squared_error, "bias": lambda p, t: jnp.mean(p - t)},
    RNG,
    num_tasks=10,
    task_chunk=4,
  )
  values = _values_by_hand(1.0, 10)
  assert set(found) == {"mse", "bias"}
  assert isinstance(found["mse"], Estimate)
  expected = (
    values.mean(),
    1.96 * np.sqrt(np.sum((values - values.mean()) ** 2) / 9) / np.sqrt(10),
    10,
  )
  np.testing.assert_allclose(found["mse"], expected, rtol=1e-4)


def test_default_is_600_different_tasks():
  """An interval over fewer, or over repeated ones, is none (trap 11)."""
  arguments = (
    _offset_learner(),
    SINUSOID,
    {"target": lambda predictions, targets: targets[0, 0]},
    RNG,
  )
  values = evaluator(*arguments)(0.0)["target"]
  assert len(np.unique(values)) == len(values) == 600


def test_tasks_are_the_same_at_each_call_and_for_all_parameters():
  traces = []

  def first_target(predictions, targets):
    traces.append(predictions)
    return targets[0, 0]

  build = functools.partial(
    evaluator,
    _offset_learner(),
    SINUSOID,
    {"target": first_target, "mse": mean_squared_error},
    num_tasks=9,
  )
  score = build(RNG)
  first, again, other = score(0.0), score(0.0), score(5.0)
  np.testing.assert_array_equal(first["mse"], again["mse"])
  assert np.all(first["mse"] != other["mse"])
  np.testing.assert_array_equal(first["target"], other["target"])
  traced_once = len(traces)
  score(6.0)
  assert len(traces) == traced_once  # Trap 13.
  elsewhere = build(jax.random.key(8))(0.0)
  assert np.all(first["target"] != elsewhere["target"])


def _same_first_query(rng):
  """Tasks that differ in nothing but the queries after the first."""
  support = jnp.array([[-1.0], [0.3], [2.0]])
  others = jax.random.normal(rng, (2, 1))
  query = jnp.concatenate([jnp.array([[0.7]]), others])
  return Episode(Batch(support, support), Batch(query, query))


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_queries_see_each_other_only_where_that_is_asked_for(normalization):
  """Batch statistics of the queries leak from query to query (trap 4)."""
  model = MLP(1, (8,), normalization=normalization)
  learner = MetaLearner(
    model.init, lambda params, support, rng: params, model.apply, lambda *_: 0
  )
  meta_params = learner.init(RNG, jnp.zeros((3, 1)))
  together, alone = (
    evaluator(
      learner,
      _same_first_query,
      {"first": lambda predictions, targets: predictions[0, 0]},
      RNG,
      num_tasks=4,
      transductive=transductive,
    )(meta_params)["first"]
    for transductive in (True, False)
  )
  # By hand: the first query in the company of the three support inputs.
  company = jnp.array([[-1.0], [0.3], [2.0], [0.7]])
  by_hand = model.apply(meta_params, company)[3, 0]
  np.testing.assert_allclose(alone, np.full(4, by_hand), rtol=1e-5)
  if normalization == "batch":
    assert np.min(np.abs(np.diff(np.sort(together)))) > 1e-3
    assert np.min(np.abs(together - by_hand)) > 1e-3
  else:
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("call", ["evaluate", "evaluator"])
@pytest.mark.parametrize(
  "arguments, name",
  [
    ({"num_tasks": 1}, "num_tasks=1"),
    ({"num_tasks": -5}, "num_tasks=-5"),
    ({"task_chunk": 0}, "task_chunk=0"),
  ],
)
def test_impossible_arguments_are_named(call, arguments, name):
  common = (SINUSOID, {"mse": mean_squared_error}, RNG)
  with pytest.raises(ValueError, match=f"^{name}"):
    if call == "evaluate":
      evaluate(_offset_learner(), 0.0, *common, **arguments)
    else:
      evaluator(_offset_learner(), *common, **arguments)
