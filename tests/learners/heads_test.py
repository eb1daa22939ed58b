"""Heads against numpy, scikit-learn and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from metajax.learners import cosine, logistic, nearest_mean, ridge

WAYS = 5


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


in_float64 = pytest.mark.usefixtures("float64")


def _data(n, d, seed=0):
  """Features, unevenly many of each class, and as many without labels."""
  draw = np.random.default_rng(seed)
  rest = draw.integers(0, WAYS, n - WAYS)
  labels = draw.permutation(np.concatenate([np.arange(WAYS), rest]))
  return draw.normal(size=(n, d)) + 1, labels, draw.normal(size=(n, d)) + 1


def _one_shot(draw, d=64):
  """One example of each class at distance 1, and as many others."""
  features = draw.normal(size=(2, WAYS, d))
  features /= np.linalg.norm(features, axis=-1, keepdims=True)
  return features[0], draw.permutation(WAYS), features[1]


def _solve(head):
  @jax.jit
  def solve(features, labels, others):
    params = head.fit(features, labels)
    return params, head.predict(params, others)

  return solve


# --- The nearest mean. ---


@in_float64
def test_nearest_mean_is_by_squared_distance():
  features, labels, others = _data(12, 7)
  assert len(set(np.bincount(labels))) > 1
  means = np.stack([features[labels == c].mean(0) for c in range(WAYS)])
  found, logits = _solve(nearest_mean(WAYS))(features, labels, others)
  np.testing.assert_allclose(found["means"], means, rtol=1e-12)
  gaps = others[:, None] - means
  np.testing.assert_allclose(logits, -(gaps**2).sum(-1), rtol=1e-10)


def test_nearest_mean_is_right_in_float32():
  features, labels, others = _data(12, 7)
  _, logits = _solve(nearest_mean(WAYS))(
    features.astype(np.float32), labels, others.astype(np.float32)
  )
  means = np.stack([features[labels == c].mean(0) for c in range(WAYS)])
  gaps = others[:, None] - means
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, -(gaps**2).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("make", [nearest_mean, cosine])
def test_logits_of_narrow_features_are_computed_in_float32(make, dtype):
  """Squares of 200 add to infinity in float16, differences to 0 in bfloat16."""
  features, labels, others = _data(12, 7)
  narrow, asked = (jnp.asarray(x + 200, dtype) for x in (features, others))
  narrow, asked = narrow.at[0].set(0), asked.at[0].set(0)
  solve = _solve(make(WAYS))
  _, expected = solve(
    narrow.astype(jnp.float32), labels, asked.astype(jnp.float32)
  )
  _, logits = solve(narrow, labels, asked)
  np.testing.assert_array_equal(logits, expected)


# --- Ridge regression. ---


@in_float64
@pytest.mark.parametrize(
  ("shape", "strength"),
  # Fewer examples than features, as many, and more.
  [((8, 20), 0.01), ((8, 20), 20.0), ((9, 9), 1.0), ((30, 6), 0.3)],
)
def test_ridge_is_scikit_learns_to_one_hot_labels(shape, strength):
  features, labels, others = _data(*shape)
  expected = Ridge(alpha=strength, solver="svd")
  expected.fit(features, np.eye(WAYS)[labels])
  head = ridge(WAYS, strength)
  params, logits = _solve(head)(features, labels, others)
  np.testing.assert_allclose(
    params["weights"], expected.coef_.T, rtol=1e-8, atol=1e-12
  )
  np.testing.assert_allclose(
    params["offset"], expected.intercept_, rtol=1e-8, atol=1e-12
  )
  np.testing.assert_allclose(
    logits, expected.predict(others), rtol=1e-8, atol=1e-12
  )


@in_float64
def test_ridge_is_the_same_in_both_spaces():
  """Features of zeros lead to the other one and may change nothing."""
  features, labels, others = _data(30, 6)
  solve = _solve(ridge(WAYS, 0.3))
  params, logits = solve(features, labels, others)
  pad = ((0, 0), (0, 40))
  padded, wide_logits = solve(
    np.pad(features, pad), labels, np.pad(others, pad)
  )
  np.testing.assert_allclose(wide_logits, logits, rtol=1e-9, atol=1e-12)
  expected = np.pad(params["weights"], ((0, 40), (0, 0)))
  np.testing.assert_allclose(padded["weights"], expected, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(padded["offset"], params["offset"], rtol=1e-9)


@in_float64
@pytest.mark.parametrize("shape", [(7, 9), (12, 3)], ids=str)
def test_gradient_through_ridge_equals_finite_differences(shape):
  """Of the features that it is fitted to, and of those it predicts from."""
  features, labels, others = _data(*shape)
  head = ridge(WAYS, 0.5)
  direction = np.random.default_rng(1).normal(size=(shape[0], WAYS))

  def loss(both):
    logits = head.predict(head.fit(both[0], labels), both[1])
    return (jnp.sin(logits) * direction).sum()

  def by_hand(both):
    """Normal equations of features and a constant, which is free."""
    ones = np.ones((shape[0], 1))
    x, penalty = np.hstack([both[0], ones]), 0.5 * np.eye(shape[1] + 1)
    penalty[-1, -1] = 0
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ np.eye(WAYS)[labels])
    return (np.sin(np.hstack([both[1], ones]) @ weights) * direction).sum()

  both = np.stack([features, others])
  steps = 1e-5 * np.eye(both.size).reshape(-1, *both.shape)
  differences = [
    (by_hand(both + step) - by_hand(both - step)) / 2e-5 for step in steps
  ]
  found = jax.jit(jax.grad(loss))(both).ravel()
  np.testing.assert_allclose(found, differences, rtol=1e-6, atol=1e-8)
  assert np.abs(differences).min() > 1e-6


# --- Logistic regression. ---


def _scikit_learns(features, labels, others, strength):
  """Weights and logits of the multinomial one, with offsets whose sum is 0."""
  fitted = LogisticRegression(
    C=1 / strength, tol=1e-12, max_iter=1000, solver="newton-cholesky"
  ).fit(features.astype(np.float64), labels)
  offset = fitted.intercept_ - fitted.intercept_.mean()
  return fitted.coef_.T, others @ fitted.coef_.T + offset


def _centred(logits):
  return logits - logits.mean(-1, keepdims=True)


@pytest.mark.slow
@in_float64
@pytest.mark.parametrize("is_separable", [False, True])
def test_logistic_is_scikit_learns(is_separable):
  if is_separable:
    strength, task = 0.1, _one_shot(np.random.default_rng(1))
  else:
    strength, task = 1.0, _data(40, 6)
  weights, logits = _scikit_learns(*task, strength)
  params, found = _solve(logistic(WAYS, strength, num_steps=100))(*task)
  np.testing.assert_allclose(params["weights"], weights, rtol=1e-8, atol=1e-10)
  np.testing.assert_allclose(_centred(found), logits, rtol=1e-8, atol=1e-10)
  again = task[0] @ params["weights"] + params["offset"]
  assert (again.argmax(-1) == task[1]).all() == is_separable


@pytest.mark.slow
def test_logistic_is_right_in_float32_on_many_tasks_at_once():
  """Also of features that are all the same, and long after convergence."""
  draw = np.random.default_rng(2)
  tasks = [_one_shot(draw) for _ in range(4)]
  tasks += [(0 * x, y, z) for x, y, z in tasks[:1]]
  tasks += [(0 * x + 0.1, y, z) for x, y, z in tasks[:1]]
  features, labels, others = (np.stack(x) for x in zip(*tasks, strict=True))
  features, others = features.astype(np.float32), others.astype(np.float32)
  solve = jax.jit(jax.vmap(_solve(logistic(WAYS, 0.1, num_steps=100))))
  params, found = solve(features, labels, others)
  for leaf in (*params.values(), found):
    assert leaf.dtype == jnp.float32
    assert np.isfinite(leaf).all()
  for t in range(4):
    _, logits = _scikit_learns(features[t], labels[t], others[t], strength=0.1)
    np.testing.assert_allclose(_centred(found[t]), logits, atol=1e-4)
  # Nothing tells the classes of the last two apart.
  np.testing.assert_allclose(jax.nn.softmax(found[4:]), 1 / WAYS, atol=1e-4)


# --- What is refused. ---


@pytest.mark.parametrize("head", [ridge, logistic])
@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_strengths_that_are_not_positive_are_named(head, strength):
  with pytest.raises(
    ValueError, match=rf"strength={strength}: must be above 0"
  ):
    head(WAYS, strength)


OUT_OF_RANGE = [(nearest_mean, 7), (ridge, 7), (logistic, 7), (ridge, -1)]


@pytest.mark.parametrize(("head", "label"), OUT_OF_RANGE)
def test_labels_out_of_range_are_refused_or_make_nan(head, label):
  """Where they are not known, no logit may look as if all were well."""
  features, others = (np.float32(x) for x in _data(6, 3)[::2])
  labels = np.array([0, 1, label, 0, 1, 1])
  head = head(2)
  with pytest.raises(
    ValueError, match=rf"^targets: class {label} given, .* 1;"
  ):
    head.fit(features, labels)
  _, logits = _solve(head)(features, labels, others)
  assert np.isnan(logits).all()
  # Padding may have any label.
  mask = labels != label
  found = head.predict(head.fit(features, labels, mask), others)
  expected = head.predict(head.fit(features[mask], labels[mask]), others)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [nearest_mean, ridge])
def test_without_ways_labels_are_below_the_number_of_examples(make):
  with pytest.raises(ValueError, match="class 9 given, must be 0 to 2"):
    make().fit(np.ones((3, 4)), np.array([0, 1, 9]))


@pytest.mark.parametrize("make", [nearest_mean, ridge, logistic])
def test_ways_that_are_not_positive_are_named(make):
  with pytest.raises(ValueError, match="^ways=0: must be 1 or more"):
    make(0)


@pytest.mark.parametrize("make", [nearest_mean, logistic])
def test_labels_that_are_no_classes_are_refused(make):
  with pytest.raises(ValueError, match="^targets: float32 given, must be int"):
    make(2).fit(np.ones((2, 3)), np.float32([0.0, 1.0]))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_masks_of_zeros_and_ones_are_those_of_bools(dtype):
  """Ones and zeros were taken for indices of examples."""
  features, labels, others = _data(6, 3)
  features, others = np.float32(features), np.float32(others)
  mask = np.arange(6) < 5
  head = nearest_mean(WAYS)
  found = head.predict(head.fit(features, labels, mask.astype(dtype)), others)
  expected = head.predict(head.fit(features, labels, mask), others)
  np.testing.assert_array_equal(found, expected)


def test_ridge_refuses_bools_which_were_numbers():
  with pytest.raises(ValueError, match="^targets: bool given, must be int"):
    ridge(2).fit(np.ones((2, 3)), np.array([True, False]))


@pytest.mark.slow
def test_logistic_of_narrow_features_is_fitted_in_float32():
  features, labels, others = _data(12, 3)
  narrow = jnp.asarray(features, jnp.bfloat16)
  solve = _solve(logistic(WAYS, num_steps=20))
  params, logits = solve(narrow, labels, others.astype(np.float32))
  expected, wide_logits = solve(
    np.asarray(narrow, np.float32), labels, others.astype(np.float32)
  )
  assert params["weights"].dtype == logits.dtype == jnp.float32
  np.testing.assert_allclose(params["weights"], expected["weights"], rtol=1e-5)
  np.testing.assert_allclose(logits, wide_logits, rtol=1e-5)
