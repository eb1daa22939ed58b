"""Gaussian processes against scikit-learn, scipy and their own prior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk

from metajax.predictive import log_likelihood
from metajax.tasks import covariances
from metajax.tasks.conditioning import condition
from metajax.tasks.covariances import Hyper
from metajax.tasks.gaussian_processes import gaussian_processes, tnp_processes
from metajax.types import Batch

HYPER = Hyper(length=0.7, scale=1.3, noise=0.1, period=1.9)
# Those of scikit-learn, without the factor scale^2.
KERNELS = {
  "rbf": sk.RBF(HYPER.length),
  "matern12": sk.Matern(HYPER.length, nu=0.5),
  "matern32": sk.Matern(HYPER.length, nu=1.5),
  "matern52": sk.Matern(HYPER.length, nu=2.5),
  "periodic": sk.ExpSineSquared(HYPER.length, HYPER.period),
}


@pytest.mark.parametrize("num_inputs", [1, 5])
@pytest.mark.parametrize("name", KERNELS)
def test_posterior_and_evidence_are_scikit_learns(name, num_inputs):
  if name == "periodic" and num_inputs > 1:
    pytest.skip("scikit-learn's is of the distance; the test below is ours")
  rng = np.random.default_rng(0)
  x = rng.uniform(-2, 2, (12, num_inputs))
  y, asked = rng.normal(size=(12, 1)), rng.uniform(-2, 2, (7, num_inputs))
  kernel = HYPER.scale**2 * KERNELS[name] + sk.WhiteKernel(HYPER.noise**2)
  known = GaussianProcessRegressor(kernel, alpha=0, optimizer=None).fit(x, y)
  mean, scale = known.predict(asked, return_std=True)
  with jax.enable_x64(True):
    found = jax.jit(functools.partial(condition, getattr(covariances, name)))(
      HYPER,
      Batch(jnp.asarray(x), jnp.asarray(y)),
      jnp.asarray(asked),
    )
  for a, b in zip(
    found, (mean, scale, known.log_marginal_likelihood_value_), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_periodic_covariance_is_the_product_over_inputs():
  x = np.random.default_rng(1).uniform(-2, 2, (6, 3))
  with jax.enable_x64(True):
    found = covariances.periodic(jnp.asarray(x), jnp.asarray(x), HYPER)
  known = np.prod([KERNELS["periodic"](c[:, None]) for c in x.T], axis=0)
  np.testing.assert_allclose(found, HYPER.scale**2 * known, rtol=1e-9)
  assert np.linalg.eigvalsh(found).min() > -1e-9


@pytest.mark.parametrize("name", ["matern12", "matern32", "matern52"])
def test_gradients_are_finite_where_points_coincide(name):
  x = jnp.array([[0.3], [0.3]])

  def total(x):
    return getattr(covariances, name)(x, x, HYPER).sum()

  assert np.isfinite(jax.grad(total)(x)).all()


def test_tasks_have_the_covariance_of_the_prior():
  """Whitened by numpy, moments are those of N(0, 1), to 4.5 standard errors."""
  tasks = gaussian_processes(shots=3, query_shots=2, length=0.5, noise=0.2)
  support, query = jax.jit(jax.vmap(tasks))(
    jax.random.split(jax.random.key(0), 4000)
  )
  x, y = (
    np.concatenate([a, b], 1).astype(np.float64)
    for a, b in (
      (support.inputs, query.inputs),
      (support.targets, query.targets),
    )
  )
  assert x.min() >= -2
  assert x.max() <= 2
  known = np.exp(-((x - x.swapaxes(1, 2)) ** 2) / (2 * 0.5**2))
  root = np.linalg.cholesky(known + 0.2**2 * np.eye(5))
  white = np.linalg.solve(root, y)[..., 0]
  np.testing.assert_allclose(white.mean(0), 0, atol=4.5 * 4000**-0.5)
  second = white[:, :, None] * white[:, None]
  errors = np.abs(second.mean(0) - np.eye(5))
  assert (errors < 4.5 * second.std(0) * 4000**-0.5).all()


def _density(y, support, asked, length, scale, noise):
  """p(y, support's targets), by scipy's multivariate normal."""
  x = np.concatenate([support.inputs, asked])
  k = scale**2 * np.exp(-((x - x.T) ** 2) / (2 * length**2))
  k += noise**2 * np.eye(len(x))
  values = np.concatenate([support.targets[:, 0], y])
  return stats.multivariate_normal(cov=k).pdf(values)


@pytest.mark.slow
def test_posterior_over_hyper_parameters_is_that_of_scipys_quadrature():
  tasks = gaussian_processes(
    shots=3, length=(0.2, 0.9), scale=(0.3, 1.5), noise=0.2, nodes=30
  )
  support = Batch(
    np.array([[-0.5], [0.1], [0.6]]), np.array([[0.9], [-0.2], [0.4]])
  )
  asked, y = np.array([[0.3]]), 0.15

  def integral(ys, at):
    return integrate.dblquad(
      lambda scale, length: _density(ys, support, at, length, scale, 0.2),
      *(0.2, 0.9, 0.3, 1.5),
      epsrel=1e-5,
    )[0]

  known = integral(np.array([y]), asked) / integral(np.zeros(0), asked[:0])
  with jax.enable_x64(True):
    found = tasks.posterior(jax.tree.map(jnp.asarray, support), asked)
    log_prob = found.log_prob(jnp.array([[y]]))
    np.testing.assert_allclose(jnp.exp(found.log_weights).sum(), 1)
  np.testing.assert_allclose(log_prob, np.log(known), atol=2e-4)


@functools.cache
def _drawn():
  tasks = gaussian_processes(
    shots=(0, 6), query_shots=(2, 5), length=(0.2, 0.9), nodes=8, noise=0.1
  )
  return tasks, jax.jit(tasks), jax.jit(tasks.posterior)


def test_padding_changes_nothing():
  _, sample, posterior = _drawn()
  episode = sample(jax.random.key(3))
  support, query = episode
  assert 0 < support.mask.sum() < 6
  found = posterior(support, query.inputs)
  wrong = jax.tree.map(
    lambda x: jnp.where(support.mask[:, None], x, 1e3),
    support._replace(mask=None),
  )
  for a, b in zip(
    found,
    posterior(wrong._replace(mask=support.mask), query.inputs),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  real = jax.tree.map(lambda x: x[support.mask], support)
  for a, b in zip(
    found, posterior(real._replace(mask=None), query.inputs), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_targets_have_the_posterior_that_is_claimed():
  """Their cdf is uniform: a Kolmogorov-Smirnov test over 400 tasks."""
  tasks, _, _ = _drawn()

  def rank(key):
    support, query = tasks(key)
    return tasks.posterior(support, query.inputs).cdf(query.targets)[0, 0]

  keys = jax.random.split(jax.random.key(4), 400)
  ranks = jax.jit(lambda keys: jax.lax.map(rank, keys))(keys)
  assert stats.kstest(ranks, "uniform").pvalue > 0.01


def test_without_support_the_posterior_is_the_prior():
  tasks = gaussian_processes(shots=0, scale=1.2, noise=0.5)
  support, query = jax.jit(tasks)(jax.random.key(0))
  found = jax.jit(tasks.posterior)(support, query.inputs)
  np.testing.assert_allclose(found.mean, np.zeros((10, 1)))
  np.testing.assert_allclose(found.variance, 1.2**2 + 0.5**2, rtol=1e-5)


def test_noise_has_a_floor_in_tasks_and_posterior():
  """Without noise the factor of 40 near points would be NaN in float32."""
  tasks = gaussian_processes(
    shots=40, noise=1e-6, length=2.0, input_range=(0, 1)
  )
  support, query = jax.jit(tasks)(jax.random.key(0))
  assert np.isfinite(support.targets).all()
  found = jax.jit(tasks.posterior)(support, query.inputs)
  assert np.isfinite(log_likelihood(found, query.targets))
  np.testing.assert_array_less(np.full((10, 1), 1e-5), found.variance * 1.001)


@pytest.mark.slow
def test_numbers_of_tnp_are_those_of_its_program():
  """n ~ U{3..46}, m ~ U{3..49 - n}; the chi-square test of n over 4,400."""
  tasks = tnp_processes()
  support, query = jax.jit(jax.vmap(tasks))(
    jax.random.split(jax.random.key(5), 4400)
  )
  n, m = support.mask.sum(1), query.mask.sum(1)
  counts = np.bincount(n, minlength=47)
  assert counts[:3].sum() == 0
  assert stats.chisquare(counts[3:]).pvalue > 0.01
  assert m.min() == 3
  assert (m <= 49 - n).all()
  part = (np.asarray(m) - 3 + 0.5) / (49 - np.asarray(n) - 2)
  assert abs(part.mean() - 0.5) < 4.5 * (1 / 12 / 4400) ** 0.5


def test_hyper_parameters_are_uniform():
  tasks = tnp_processes(covariances.periodic)
  drawn = jax.vmap(tasks.draw)(jax.random.split(jax.random.key(6), 1000))
  for values, low, high in (
    (drawn.length, 0.1, 0.6),
    (drawn.scale, 0.1, 1.0),
    (drawn.period, 0.1, 0.5),
  ):
    known = stats.uniform(low, high - low)
    assert stats.kstest(values, known.cdf).pvalue > 0.01
  np.testing.assert_allclose(drawn.noise, 0.02)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"length": 0}, "length=0: must be above 0, or two such numbers"),
    ({"length": "1"}, "length=1: must be above 0, or two such numbers"),
    ({"length": (1, 2, 3)}, r"length=\(1, 2, 3\): must be above 0, or two"),
    ({"scale": (2, 1)}, r"scale=\(2, 1\): must be above 0"),
    ({"num_inputs": 0}, "num_inputs=0: must be 1 or more"),
    ({"input_range": (1, 1)}, r"input_range=\(1, 1\): must be \(low, high\)"),
    ({"input_range": (0, np.inf)}, r"input_range=\(0, inf\): must be"),
    ({"nodes": 2.5, "length": (1, 2)}, "nodes=2.5: must be 1 or more, or 1"),
    ({"nodes": 0, "length": (1, 2)}, "nodes=0: must be 1 or more, or 1 such"),
    ({"nodes": (3, 3), "length": (1, 2)}, r"nodes=\(3, 3\): must be 1 or more"),
    ({"shots": -1}, "shots=-1: must be 0 or more"),
    ({"query_shots": 0}, "query_shots=0: must be 1 or more"),
    ({"shots": 5, "max_points": 9}, "max_points=9: must be 15 or more"),
  ],
)
def test_bad_arguments_are_refused(flags, message):
  with pytest.raises(ValueError, match=message) as caught:
    gaussian_processes(**flags)
  assert "\n" not in str(caught.value)
