"""Exact learners, tasks that tell their hyper-parameters, joint densities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metajax.calibration import calibration_error, coverage
from metajax.evaluation import evaluate
from metajax.predictive import log_likelihood, mean_error
from metajax.tasks.gaussian_processes import gaussian_processes
from metajax.tasks.known import (
  exact_learner,
  joint_by_evidence,
  joint_log_likelihood,
  revealed,
)
from metajax.tasks.linear_regression import linear_regression
from metajax.types import Batch, Episode

TASKS = gaussian_processes(
  shots=(2, 6), query_shots=(3, 6), length=(0.1, 1.0), noise=0.1, nodes=12
)
SAMPLE = jax.jit(TASKS)


@functools.cache
def _scores():
  metrics = {
    "log_likelihood": log_likelihood,
    "error": mean_error,
    "covered": coverage(0.9),
    "calibration": calibration_error,
  }
  return {
    name: evaluate(
      exact_learner(tasks), (), tasks, metrics, jax.random.key(0), num_tasks=600
    )
    for name, tasks in (("posterior", TASKS), ("given", revealed(TASKS)))
  }


@pytest.mark.slow
def test_exact_predictions_are_calibrated():
  for scores in _scores().values():
    covered = scores["covered"]
    assert abs(covered.mean - 0.9) < 4 * covered.ci95 / 1.96


@pytest.mark.slow
def test_knowing_the_hyper_parameters_helps():
  told, not_told = _scores()["given"], _scores()["posterior"]
  assert told["log_likelihood"].mean > not_told["log_likelihood"].mean + 0.02
  assert told["error"].mean < not_told["error"].mean


@pytest.mark.slow
def test_revealed_tasks_are_the_same_tasks():
  key = jax.random.key(1)
  # Two compiled programs may round the last bit in two ways.
  episode, told = TASKS(key), revealed(TASKS)(key)
  for plain, batch in zip(episode, told, strict=True):
    np.testing.assert_array_equal(plain.inputs, batch.inputs[0])
    # Two programs round differently.
    np.testing.assert_allclose(plain.targets, batch.targets, rtol=1e-5)
    assert (batch.inputs[1].length == batch.inputs[1].length[0]).all()
  hyper = jax.tree.map(lambda h: h[0], told.query.inputs[1])
  for a, b in zip(
    revealed(TASKS).posterior(told.support, told.query.inputs),
    TASKS.given(
      hyper,
      told.support._replace(inputs=told.support.inputs[0]),
      told.query.inputs[0],
    ),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_the_same_key_draws_the_same_task():
  a, b, other = (
    SAMPLE(jax.random.key(2)),
    SAMPLE(jax.random.key(2)),
    SAMPLE(jax.random.key(3)),
  )
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
  assert (a.query.inputs != other.query.inputs).any()


def test_joint_density_is_that_of_the_multivariate_normal():
  """log p(all) - log p(support), by scipy, over the real examples."""
  rng = np.random.default_rng(0)
  x, y = rng.uniform(-2, 2, (7, 1)), rng.normal(size=(7, 1))
  mask = np.array([True, True, False, True])
  tasks = gaussian_processes(length=0.6, scale=0.9, noise=0.3)
  with jax.enable_x64(True):
    x_, y_ = jnp.asarray(x), jnp.asarray(y)
    query = Batch(x_[3:], y_[3:], jnp.asarray(mask))
    found = joint_log_likelihood(
      tasks.posterior, Episode(Batch(x_[:3], y_[:3]), query)
    )

  def log_prob(rows):
    z = x[rows]
    k = 0.81 * np.exp(-((z - z.T) ** 2) / 0.72) + 0.09 * np.eye(len(z))
    return stats.multivariate_normal(cov=k).logpdf(y[rows, 0])

  known = (log_prob([0, 1, 2, 3, 4, 6]) - log_prob([0, 1, 2])) / 3
  np.testing.assert_allclose(found, known, rtol=1e-9)


@pytest.mark.slow
def test_evidence_gives_the_same_joint_density():
  """Over a grid of several chunks, with masks."""
  tasks = gaussian_processes(
    shots=(2, 6), query_shots=(3, 6), length=(0.1, 1.0), noise=0.1, nodes=70
  )

  @jax.jit
  def both(key):
    episode = tasks(key)
    return (
      joint_by_evidence(tasks, episode),
      joint_log_likelihood(tasks.posterior, episode),
    )

  for key in jax.random.split(jax.random.key(4), 3):
    np.testing.assert_allclose(*both(key), rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_no_inputs_have_no_predictions():
  tasks = gaussian_processes(length=(0.1, 1.0), nodes=70)
  support, query = SAMPLE(jax.random.key(5))
  found = tasks.posterior(support, query.inputs[:0])
  assert found.mean.shape == found.variance.shape == (0, 1)


@pytest.mark.slow
def test_tasks_without_evidence_are_refused():
  with pytest.raises(ValueError, match="no log_evidence; use joint_log_likel"):
    joint_by_evidence(revealed(TASKS), TASKS(jax.random.key(0)))


@pytest.mark.parametrize("tasks", [TASKS, linear_regression(3, shots=4)])
def test_products_are_asked_for_in_full_precision(tasks):
  """GPUs would round their factors; it cannot be seen on a CPU otherwise."""
  support, query = jax.eval_shape(tasks, jax.random.key(0))
  for lowered in (
    jax.jit(tasks).lower(jax.random.key(0)),
    jax.jit(tasks.posterior).lower(support, query.inputs),
  ):
    lines = lowered.as_text().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line]
    assert products
    assert all("[HIGHEST, HIGHEST]" in line for line in products)
