"""The support vector machine against scikit-learn and finite differences."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from metajax.learners import cosine, support_vector_machine, svm
from metajax.learners.closed_form import cosine_prototypes
from metajax.learners.heads import ABSENT
from metajax.losses import cross_entropy
from metajax.models.mlp import MLP

WAYS = 4


def _data(n, d, seed=0):
  """Classes that overlap, unevenly many of each."""
  draw = np.random.default_rng(seed)
  rest = draw.integers(0, WAYS, n - WAYS)
  labels = draw.permutation(np.concatenate([np.arange(WAYS), rest]))
  centres = 0.7 * draw.normal(size=(WAYS, d))
  return draw.normal(size=(n, d)) + centres[labels], labels


@functools.cache
def _fit(cost):
  return jax.jit(svm(WAYS, cost).fit)


# More examples than numbers, where the dual has many solutions, and fewer.
@pytest.mark.slow
@pytest.mark.parametrize(
  "n, d, cost, tolerance", [(20, 30, 0.1, 1e-6), (20, 6, 1.0, 1e-6)]
)
def test_weights_are_those_of_scikit_learn(n, d, cost, tolerance):
  features, labels = _data(n, d)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    reference = LinearSVC(
      multi_class="crammer_singer",
      C=cost,
      fit_intercept=False,
      tol=1e-9,
      max_iter=10**6,
    ).fit(features, labels)
  with jax.enable_x64(True):
    found = _fit(cost)(jnp.asarray(features), jnp.asarray(labels))
  np.testing.assert_allclose(
    found["weights"].T, reference.coef_, rtol=0, atol=tolerance
  )
  in_short = _fit(cost)(jnp.asarray(features, jnp.float32), jnp.asarray(labels))
  np.testing.assert_allclose(
    in_short["weights"].T, reference.coef_, rtol=0, atol=5e-3
  )


@pytest.mark.slow
def test_two_examples_have_a_closed_form():
  """w_0 = -w_1 = s (a - b), where the margin is 1 or the cost is reached.

  With b = -a the margin (w_0 - w_1) . a is 4 s |a|^2, and s is at most the
  cost, the weight of an example.
  """
  a = np.array([1.0, 2.0, -1.0])
  with jax.enable_x64(True):
    for cost, share in ((0.1, 1 / (2 * a @ a)), (0.01, 2 * 0.01)):
      fit = jax.jit(svm(2, cost).fit)
      head = fit(jnp.stack([a, -a]), jnp.array([0, 1]))
      np.testing.assert_allclose(head["weights"][:, 0], share * a, atol=1e-8)
      np.testing.assert_allclose(head["weights"][:, 1], -share * a, atol=1e-8)


@pytest.mark.slow
def test_derivatives_equal_finite_differences():
  """The gradient, and along a line the second derivative, by both modes."""
  with jax.enable_x64(True):
    features, labels = (jnp.asarray(x) for x in _data(10, 14))
    draw = np.random.default_rng(1)
    others, along = (jnp.asarray(draw.normal(size=(10, 14))) for _ in range(2))
    head = svm(WAYS, 0.1)

    def loss(step):
      x = features + step * along
      return cross_entropy(head.predict(head.fit(x, labels), others), labels)

    @jax.jit
    def derivatives(step):
      slope, second = jax.jvp(jax.grad(loss), (step,), (1.0,))
      return loss(step), slope, second

    h = 1e-5
    ahead, behind = derivatives(h), derivatives(-h)
    _, slope, second = derivatives(0.0)
    for found, i, tolerance in ((slope, 0, 1e-6), (second, 1, 1e-4)):
      differences = (ahead[i] - behind[i]) / (2 * h)
      np.testing.assert_allclose(found, differences, rtol=tolerance)
    assert min(abs(slope), abs(second)) > 1e-4


def test_tasks_by_vmap_are_the_tasks_alone():
  data = [_data(20, 30, seed) for seed in range(2)]  # Compiled already.
  features, labels = (jnp.stack(x) for x in zip(*data, strict=True))
  features = features.astype(jnp.float32)
  together = jax.jit(jax.vmap(svm(WAYS).fit))(features, labels)["weights"]
  for x, y, weights in zip(features, labels, together, strict=True):
    alone = _fit(0.1)(x, y)["weights"]
    np.testing.assert_allclose(weights, alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_features_of_any_size_give_finite_weights_and_gradients(scale):
  features, labels = _data(8, 5)
  x = jnp.asarray(scale * features, jnp.float32)

  def total(x):
    return svm(WAYS).fit(x, labels)["weights"].sum()

  value, grads = jax.jit(jax.value_and_grad(total))(x)
  assert np.isfinite(value) and np.isfinite(grads).all()


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan")])
def test_impossible_costs(cost):
  with pytest.raises(ValueError, match=r"cost=.*: must be above 0"):
    svm(WAYS, cost)
  with pytest.raises(ValueError, match=r"cost=.*: must be above 0"):
    support_vector_machine(MLP(None), cross_entropy, cost=cost)


@pytest.mark.slow
def test_cosines_are_those_of_numpy():
  features, labels = _data(9, 6)
  others = np.random.default_rng(1).normal(size=(3, 6))
  means = np.stack([features[labels == c].mean(0) for c in range(WAYS)])
  lengths = np.linalg.norm(others, axis=1)[:, None]
  expected = others @ means.T / lengths / np.linalg.norm(means, axis=1)
  with jax.enable_x64(True):
    head = cosine(WAYS)
    fitted = head.fit(jnp.asarray(features), jnp.asarray(labels))
    found = head.predict(fitted, jnp.asarray(others))
    scaled = head.predict({**fitted, "scale": 10.0}, jnp.asarray(others))
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  np.testing.assert_allclose(scaled, 10 * expected, rtol=1e-9)


def test_the_scale_of_cosines_begins_at_10():
  learner = cosine_prototypes(MLP(None, (4,)), cross_entropy, num_outputs=WAYS)
  params = learner.init(jax.random.key(0), jnp.zeros((2, 3)))
  np.testing.assert_allclose(np.exp(params["log_scale"]), 10, rtol=1e-6)


@pytest.mark.parametrize("ways", [WAYS, None])
def test_no_example_has_no_class(ways):
  head = svm(ways)
  fitted = head.fit(jnp.ones((0, 3)), jnp.zeros(0, int))
  logits = head.predict(fitted, jnp.ones((2, 3)))
  assert logits.shape == (2, ways or 0)
  np.testing.assert_array_equal(logits, ABSENT * np.finfo(np.float32).max)
