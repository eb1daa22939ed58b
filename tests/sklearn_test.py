"""The classifier for scikit-learn; most weights here have learned nothing."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import check_estimator

from metajax import saved
from metajax.recipes import Recipe, build
from metajax.sklearn import InContextClassifier
from metajax.types import Batch

RECIPE = Recipe(
  "tabular_classifier",
  None,
  num_outputs=3,
  loss="cross_entropy",
  kind="table",
  options={"width": 8, "hidden": 8, "num_layers": 2, "heads": 2},
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights")
  inputs = jax.ShapeDtypeStruct((4,), jnp.float32)
  params = build(RECIPE).init(jax.random.key(0), jnp.zeros((1, 4)))
  saved.save(folder, RECIPE, params, inputs)
  return str(folder)


def table(classes=3, rows=30, features=3):
  draw = np.random.default_rng(0)
  y = np.arange(rows) % classes
  x = draw.normal(size=(rows, features)) + y[:, None]
  return x, np.asarray([f"class {k}" for k in range(classes)])[y]


@pytest.mark.slow
def test_probabilities_are_those_of_the_network(weights):
  """One reading with padding, against the learner of the same folder."""
  x, y = table()
  x[3, 1] = np.nan
  ours = InContextClassifier(weights, n_estimators=1).fit(x[:20], y[:20])
  found = ours.predict_proba(x[20:])
  loaded = saved.load(weights)
  draw = np.random.default_rng(ours._seed)
  columns, order = draw.permutation(3), draw.permutation(3)
  targets = order[np.unique(y, return_inverse=True)[1]]
  key = jax.random.wrap_key_data(np.uint32([ours._seed, 0]))
  # Names are drawn for the padded table.
  padded = np.full((30, 4), np.nan, np.float32)
  padded[:, :3] = x[:, columns]
  support = Batch(padded[:20], targets[:20])
  task_params = loaded.learner.adapt(loaded.meta_params, support, key)
  logits = loaded.learner.predict(task_params, padded[20:])
  expected = np.asarray(jax.nn.softmax(logits))[:, order]
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert list(ours.classes_) == ["class 0", "class 1", "class 2"]
  assert set(ours.predict(x)) <= set(y)


@pytest.mark.slow
def test_the_kind_of_new_keys_has_no_effect(weights):
  """Keys of "rbg" are of four numbers, and the two here were refused."""
  x, y = table()
  ours = InContextClassifier(weights, n_estimators=1).fit(x, y)
  before = ours.predict_proba(x)
  jax.clear_caches()
  with jax.default_prng_impl("rbg"):
    np.testing.assert_array_equal(ours.predict_proba(x), before)


@pytest.mark.slow
def test_pickled_and_cloned(weights):
  x, y = table()
  ours = InContextClassifier(weights, n_estimators=2).fit(x, y)
  before = ours.predict_proba(x)
  again = pickle.loads(pickle.dumps(ours))
  np.testing.assert_array_equal(before, again.predict_proba(x))
  anew = clone(ours).fit(x, y)
  np.testing.assert_array_equal(before, anew.predict_proba(x))


@pytest.mark.slow
def test_more_classes_rows_and_features_than_a_reading_takes(weights):
  x, y = table(classes=5, rows=40, features=6)
  ours = InContextClassifier(
    weights, n_estimators=2, max_rows=20, max_features=2
  )
  with (
    pytest.warns(UserWarning, match="max_rows=20"),
    pytest.warns(UserWarning, match="6 features"),
  ):
    ours.fit(x, y)
  found = ours.predict_proba(x)
  assert found.shape == (40, 5)
  np.testing.assert_allclose(found.sum(1), 1)


@pytest.mark.slow
def test_scales_of_any_size(weights):
  x, y = table()
  ours = InContextClassifier(weights, n_estimators=1)
  before = ours.fit(x, y).predict_proba(x)
  scaled = ours.fit(1e300 * x, y).predict_proba(1e300 * x)
  np.testing.assert_allclose(before, scaled, atol=1e-5)


def test_predictions_that_are_not_finite_are_no_guess(weights):
  """`argmax` of NaN is the first class."""
  x, y = table()
  classifier = InContextClassifier(weights, n_estimators=1).fit(x, y)
  bad = jax.tree.map(lambda w: w * np.nan, classifier.weights_)
  classifier.weights_ = bad
  with pytest.raises(ValueError, match="predictions are not finite"):
    classifier.predict(x)


def test_bad_arguments_are_refused(weights, tmp_path):
  x, y = table()
  for wrong in (0, 2.5, "3", None):
    with pytest.raises(ValueError, match=rf"n_estimators={wrong!r}: must be"):
      InContextClassifier(weights, n_estimators=wrong).fit(x, y)
  with pytest.raises(ValueError, match="max_rows=1: a reading must have a row"):
    InContextClassifier(weights, max_rows=1).fit(x, y)
  with pytest.raises(ValueError, match="has no learner.json"):
    InContextClassifier(tmp_path).fit(x, y)


def test_columns_that_are_not_numbers_are_named(weights):
  x, y = table()
  ours = InContextClassifier(weights, n_estimators=1).fit(x, y)
  mixed = x.astype(object)
  mixed[0, 1] = None  # Missing.
  mixed[:, 2] = "red"
  for refused in (lambda: ours.fit(mixed, y), lambda: ours.predict(mixed)):
    with pytest.raises(ValueError, match=r"the columns \[2\] are not numbers"):
      refused()
  pandas = pytest.importorskip("pandas")
  frame = pandas.DataFrame(x, columns=list("abc"))
  frame["day"] = pandas.Timestamp("2020-01-01")
  frame["b"] = pandas.Categorical(np.where(x[:, 1] > 0, "red", "blue"))
  with pytest.raises(ValueError, match=r"the columns \['b', 'day'\]"):
    ours.fit(frame, y)


def test_features_that_a_reading_leaves_out_are_told(weights):
  x, y = table()
  with pytest.warns(UserWarning, match="each of the 1 readings has 2 of them"):
    InContextClassifier(weights, n_estimators=1, max_features=2).fit(x, y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_accepts_the_classifier():
  """By the weights of the package: one of the checks wants an accuracy."""
  check_estimator(InContextClassifier(n_estimators=1))


@pytest.mark.slow
def test_the_weights_of_the_package_classify_wines():
  """docs/tabular.md has 97.9% over 20 splits; guessing has 40%."""
  x, y = load_wine(return_X_y=True)
  x, new_x, y, new_y = train_test_split(
    x, y, train_size=0.5, stratify=y, random_state=0
  )
  assert InContextClassifier().fit(x, y).score(new_x, new_y) > 0.93
