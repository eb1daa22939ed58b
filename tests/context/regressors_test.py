"""Regressors of a support, against numpy, scikit-learn and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

from metajax.context import regressors
from metajax.types import Batch

N, D, LABELS = 8, 4, 2


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _expected(name, x, y, new):
  """What another library predicts of the examples x, y."""
  if not len(x):
    return np.zeros((len(new), LABELS))
  if name == "least_squares":
    return new @ np.linalg.lstsq(x, y, rcond=None)[0]
  return KNeighborsRegressor(min(3, len(x))).fit(x, y).predict(new)


REGRESSORS = {
  "least_squares": regressors.least_squares,
  "nearest_neighbours": regressors.nearest_neighbours(3),
}


@pytest.fixture(scope="module")
def batch():
  draw = np.random.default_rng(0)
  x, y = draw.normal(size=(N, D)), draw.normal(size=(N, LABELS))
  return Batch(jnp.asarray(x), jnp.asarray(y))


@pytest.mark.parametrize("name", REGRESSORS)
def test_every_prefix_is_what_another_library_predicts(name, batch):
  """Fewer examples than inputs, as many and more; and none."""
  found = jax.jit(lambda b: regressors.every_prefix(REGRESSORS[name], b))(batch)
  x, y = np.asarray(batch.inputs), np.asarray(batch.targets)
  for i in range(N):
    expected = _expected(name, x[:i], y[:i], x[i : i + 1])[0]
    np.testing.assert_allclose(found[i], expected, atol=1e-9)


@pytest.mark.parametrize("name", REGRESSORS)
def test_padding_changes_nothing(name, batch):
  mask = np.array([1, 0, 1, 1, 0, 1, 0, 1], bool)
  x, y = np.asarray(batch.inputs), np.asarray(batch.targets)
  new = np.random.default_rng(1).normal(size=(3, D))
  found = REGRESSORS[name](batch._replace(mask=jnp.asarray(mask)), new)
  expected = _expected(name, x[mask], y[mask], new)
  np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", REGRESSORS)
def test_no_example_at_all_predicts_zero(name):
  empty = Batch(jnp.zeros((0, D)), jnp.zeros((0, LABELS)))
  found = REGRESSORS[name](empty, jnp.ones((3, D)))
  np.testing.assert_array_equal(found, np.zeros((3, LABELS)))


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_best_step_is_the_best_of_many_tasks(noise):
  """100,000 tasks: the error, and its minimum over rates by a parabola."""
  n, d, tasks = 6, 3, 100_000
  draw = np.random.default_rng(0)
  x = draw.normal(size=(tasks, n + 1, d))
  w = draw.normal(size=(tasks, d))
  y = np.einsum("tnd,td->tn", x, w)
  y += noise * draw.normal(size=y.shape)
  step = np.einsum("tnd,tn->td", x[:, :n], y[:, :n]) / n
  along = (step * x[:, n]).sum(-1)
  rate, error = regressors.best_step(d, n, noise)
  found = (along * y[:, n]).mean() / np.square(along).mean()
  np.testing.assert_allclose(rate, found, rtol=0.02)
  errors = np.square(rate * along - y[:, n])
  away = (errors.mean() - error) / (errors.std() / tasks**0.5)
  assert abs(away) < 3, away


def test_no_neighbour_is_named():
  with pytest.raises(ValueError, match="count=0: must be 1 or more"):
    regressors.nearest_neighbours(0)
