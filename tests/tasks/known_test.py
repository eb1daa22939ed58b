"""Exact learners, tasks that tell their hyper-parameters, joint densities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from metajax.calibration import calibration_error, coverage
from metajax.evaluation import evaluate
from metajax.predictive import log_likelihood, mean_error
from metajax.tasks.gaussian_processes import gaussian_processes
from metajax.tasks.known import exact_learner, joint_log_likelihood, revealed
from metajax.types import Batch, Episode

TASKS = gaussian_processes(
  shots=(2, 6), query_shots=(3, 6), length=(0.1, 1.0), noise=0.1, nodes=12
)


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


def test_exact_predictions_are_calibrated():
  for scores in _scores().values():
    covered = scores["covered"]
    assert abs(covered.mean - 0.9) < 4 * covered.ci95 / 1.96


def test_knowing_the_hyper_parameters_helps():
  told, not_told = _scores()["given"], _scores()["posterior"]
  assert told["log_likelihood"].mean > not_told["log_likelihood"].mean + 0.02
  assert told["error"].mean < not_told["error"].mean


def test_revealed_tasks_are_the_same_tasks():
  key = jax.random.key(1)
  episode, told = TASKS(key), revealed(TASKS)(key)
  for plain, batch in zip(episode, told, strict=True):
    np.testing.assert_array_equal(plain.inputs, batch.inputs[0])
    np.testing.assert_array_equal(plain.targets, batch.targets)
    assert (batch.inputs[1].length == batch.inputs[1].length[0]).all()
  hyper = jax.tree.map(lambda h: h[0], told.query.inputs[1])
  for a, b in zip(
    revealed(TASKS).posterior(told.support, told.query.inputs),
    TASKS.given(hyper, episode.support, episode.query.inputs),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_the_same_key_draws_the_same_task():
  a, b, other = (
    TASKS(jax.random.key(2)),
    TASKS(jax.random.key(2)),
    TASKS(jax.random.key(3)),
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
