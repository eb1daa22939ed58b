"""The prior of tables: shapes, masks, classes, and that they can be learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from metajax.tabular import tabular_prior
from metajax.tabular.labels import classes_of, renumbered

FEATURES, ROWS, ASKED, TABLES = 6, 60, 20, 64


@pytest.fixture(scope="module")
def tables():
  family = tabular_prior(FEATURES, shots=(10, ROWS), query_shots=ASKED)
  keys = jax.random.split(jax.random.key(0), TABLES)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(family))(keys))


@pytest.mark.slow
def test_tables_have_gaps_absent_features_and_padding_that_is_finite(tables):
  (x, y, real), query = tables
  assert x.shape == (TABLES, ROWS, FEATURES)
  assert query.inputs.shape == (TABLES, ASKED, FEATURES)
  assert np.isfinite(x[~real]).all() and not np.isinf(x).any()
  assert real.sum(1).min() >= 10 and (real.sum(1) == ROWS).mean() >= 0.4
  whole = np.concatenate(
    [np.where(real[..., None], x, np.nan), query.inputs], 1
  )
  absent = np.isnan(whole).all(1)
  # The absent columns are the last ones.
  assert (np.diff(absent.astype(int), axis=1) >= 0).all()
  assert 0.2 < absent.any(1).mean() < 0.7
  rows = np.concatenate([real, np.ones((TABLES, ASKED), bool)], 1)
  gaps = np.isnan(whole) & ~absent[:, None] & rows[..., None]
  assert 0.05 < gaps.any((1, 2)).mean() < 0.45
  assert y.min() >= 0 and y.max() < 10


@pytest.mark.slow
def test_a_query_is_of_a_class_of_its_support(tables):
  (_, y, real), query = tables
  for i in range(TABLES):
    seen = np.isin(query.targets[i], y[i][real[i]])
    np.testing.assert_array_equal(query.mask[i], seen)


@pytest.mark.slow
def test_tables_are_drawn_by_their_key_alone(tables):
  family = tabular_prior(FEATURES, shots=(10, ROWS), query_shots=ASKED)
  keys = jax.random.split(jax.random.key(0), TABLES)
  alone = jax.jit(family)(keys[3])
  np.testing.assert_array_equal(
    alone.support.targets, tables.support.targets[3]
  )


@pytest.mark.slow
def test_tables_can_be_learned(tables):
  right, frequent = [], []
  for i in range(TABLES):
    x, y, real = (z[i] for z in tables.support)
    asked, labels, seen = (z[i] for z in tables.query)
    forest = RandomForestClassifier(50, random_state=0)
    forest.fit(np.nan_to_num(x[real], nan=-9), y[real])
    found = forest.predict(np.nan_to_num(asked, nan=-9))
    most = np.bincount(y[real]).argmax()
    right.append((found == labels)[seen].mean())
    frequent.append((most == labels)[seen].mean())
  assert np.mean(right) > np.mean(frequent) + 0.08


@pytest.mark.slow
def test_cuts_and_maxima_give_classes_of_the_scores():
  """Without classes to share, a class is an interval or a largest score."""
  scores = jax.random.normal(jax.random.key(1), (50, 10))
  keys = jax.random.split(jax.random.key(2), 40)
  labels = jax.vmap(lambda key: classes_of(key, scores, jnp.asarray(2)))(keys)
  assert set(np.unique(labels)) == {0, 1}
  first = np.asarray(scores[:, 0])
  # Of two classes by one cut, those of one class lie above the others.
  apart = [
    first[y == 1].min() > first[y == 0].max() - 0.5
    for y in np.asarray(labels)
    if 0 < y.sum() < 50
  ]
  assert 0.1 < np.mean(apart) < 0.9


def test_classes_are_renumbered_among_those_of_the_table():
  u = jnp.asarray([0.9, 0.1, 0.5, 0.0])
  found = renumbered(u, jnp.asarray([0, 1, 2, 2]), jnp.asarray(3))
  np.testing.assert_array_equal(found, [2, 0, 1, 1])


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"max_features": 0}, "max_features=0"),
    ({"max_classes": 17}, "max_classes=17"),
    ({"query_shots": 0}, "query_shots=0"),
    ({"shots": (5, 2)}, "shots"),
  ],
)
def test_impossible_numbers_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    tabular_prior(**arguments)
