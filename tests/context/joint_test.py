"""Joint predictions: TNP-A is its conditionals, TNP-ND a normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

from metajax.context import log_density, tnp_a, tnp_nd
from metajax.context.autoregressive import order
from metajax.context.joint import Joint
from metajax.evaluation import evaluate, evaluation_keys
from metajax.predictive import Normal
from metajax.types import Batch, Episode, MetaLearner

RNG = jax.random.key(0)
SIZES = {"width": 8, "hidden": 12, "layers": 2, "heads": 2}
OUTPUTS, SUPPORT, QUERY = 2, 4, 3


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def task():
  draw = np.random.default_rng(0)

  def batch(n):
    return Batch(draw.normal(size=(n, 1)), draw.normal(size=(n, OUTPUTS)))

  return batch(SUPPORT), batch(QUERY)


def _solved(learner, support, inputs):
  """Returns task parameters of random ones, and the predictions."""
  like = jax.eval_shape(learner.init, RNG, support.inputs)
  draw = np.random.default_rng(1)
  params = jax.tree.map(lambda x: draw.normal(0, 0.4, x.shape), like)
  task_params = jax.jit(learner.adapt)(params, support, RNG)
  return task_params, jax.jit(learner.predict)(task_params, inputs)


@jax.jit
def _terms(predictions, targets):
  return predictions.conditional(targets, None)


@pytest.mark.slow
def test_tnp_a_is_the_sum_of_its_conditionals(task):
  """Target i from the support and a query i - 1 long, one at a time."""
  learner = tnp_a(num_outputs=OUTPUTS, **SIZES)
  support, query = task
  task_params, predictions = _solved(learner, support, query.inputs)
  found = _terms(predictions, query.targets)
  for i in range(QUERY):
    inputs, targets = query.inputs[: i + 1], query.targets[: i + 1]
    part = jax.jit(learner.predict)(task_params, inputs)
    np.testing.assert_allclose(found[i], _terms(part, targets)[i], rtol=1e-9)
  np.testing.assert_allclose(
    log_density(predictions, query.targets), np.mean(found), rtol=1e-12
  )
  # The first one knows what its marginal does, and the last one more.
  marginal = predictions.log_prob(query.targets)
  np.testing.assert_allclose(found[0], marginal[0], rtol=1e-9)
  assert np.abs(found[-1] - marginal[-1]).min() > 1e-6


@pytest.mark.slow
def test_tnp_a_conditionals_depend_on_earlier_targets_alone(task):
  """The Jacobian is zero above the diagonal, and only there."""
  support, query = task
  _, predictions = _solved(
    tnp_a(num_outputs=OUTPUTS, **SIZES), support, query.inputs
  )

  def terms(targets):
    return _terms(predictions, targets).sum(-1)

  jacobian = jax.jit(jax.jacobian(terms))(jnp.asarray(query.targets))
  size = np.abs(jacobian).sum(-1)
  np.testing.assert_array_equal(np.triu(size, 1), 0)
  assert size[np.tril_indices(QUERY)].min() > 1e-6


@pytest.mark.slow
def test_tnp_a_integrates_to_one(task):
  """Over the two targets of one number each, on a grid."""
  support, query = task
  support = support._replace(targets=support.targets[:, :1])
  _, predictions = _solved(tnp_a(**SIZES), support, query.inputs[:2])
  spread = 9 * np.sqrt(np.max(predictions.variance))
  line = np.linspace(-spread, spread, 301) + float(predictions.mean[0, 0])
  pairs = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1)

  def density(pair):
    return jnp.exp(_terms(predictions, pair[:, None]).sum())

  values = jax.jit(jax.vmap(jax.vmap(density)))(pairs)
  inner = np.trapezoid(values, line, axis=1)
  np.testing.assert_allclose(np.trapezoid(inner, line), 1, atol=1e-3)


def test_queries_predicted_alone_are_scored_by_their_marginals():
  """Of n = s + 1 queries, last rows of factors looked like one factor."""
  n = 4

  def tasks(rng):
    x = jax.random.normal(rng, (2 * n - 1, 1))
    return Episode(Batch(x[n:], x[n:]), Batch(x[:n], x[:n] + 1))

  def predict(params, x):
    factor = jnp.diag(1 + jnp.abs(x[:, 0]))
    conditional = Partial(lambda factor, y, mask: y @ factor, factor)
    return Joint(Normal(x, 1 + jnp.square(x)), conditional)

  learner = MetaLearner(
    lambda rng, x: (), lambda params, support, rng: (), predict, lambda *_: None
  )
  rng = jax.random.key(3)
  metrics = {"log_density": log_density}
  found = evaluate(
    learner, (), tasks, metrics, rng, num_tasks=5, transductive=False
  )
  expected = []
  for key in evaluation_keys(rng, 5):
    x, y = tasks(jax.random.split(key)[0]).query[:2]
    expected.append(scipy.stats.norm.logpdf(y, x, 1 + x**2).mean())
  np.testing.assert_allclose(found["log_density"].mean, np.mean(expected), 1e-5)


def test_order_of_three_tokens():
  expected = [
    "100000",  # With a target: those before, and itself.
    "110000",
    "111000",
    "000000",  # Without: those before.
    "100000",
    "110000",
  ]
  np.testing.assert_array_equal(
    order(3), [[c == "1" for c in row] for row in expected]
  )


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["cholesky", "low_rank"])
def test_tnp_nd_is_a_normal_distribution(covariance, task):
  learner = tnp_nd(num_outputs=OUTPUTS, covariance=covariance, rank=5, **SIZES)
  support, query = task
  _, predictions = _solved(learner, support, query.inputs)
  mean, factor = predictions.conditional.args
  matrix = np.asarray(factor @ factor.T)
  expected = scipy.stats.multivariate_normal.logpdf(
    query.targets.ravel(), np.ravel(mean), matrix
  )
  found = _terms(predictions, query.targets)
  np.testing.assert_allclose(found.sum(), expected, rtol=1e-9)
  np.testing.assert_allclose(
    predictions.variance.ravel(), np.diagonal(matrix), rtol=1e-9
  )
  # The correlations of one input's numbers, and of two inputs.
  scale = np.sqrt(np.diagonal(matrix))
  correlations = matrix / np.outer(scale, scale) - np.eye(len(matrix))
  assert 1e-3 < np.abs(correlations).max() < 1


def test_low_rank_is_finite_where_variances_vanish():
  """In float32 a covariance of rank 5 was not positive definite: NaN."""
  learner = tnp_nd(covariance="low_rank", rank=5, **SIZES)
  x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
  with jax.enable_x64(False):
    params = learner.init(RNG, x)
    params["projection"][-1] = jax.tree.map(
      lambda w: 30 * w, params["projection"][-1]
    )
    params["diagonal"][-1]["bias"] -= 40
    task_params = learner.adapt(params, Batch(x[:3], x[:3]), RNG)
    found = learner.predict(task_params, x)
    assert np.isfinite(_terms(found, x)).all()


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 2)])
def test_targets_of_another_shape_are_not_broadcast(shape):
  predictions = Normal(jnp.zeros((5, 1)), jnp.ones((5, 1)))
  with pytest.raises(ValueError, match="must be equal"):
    log_density(predictions, jnp.ones(shape))
