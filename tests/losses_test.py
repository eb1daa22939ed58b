"""Losses and scores against their definitions in numpy float64."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.losses import (
  accuracy,
  accuracy_by_presentation,
  cross_entropy,
  masked_mean,
  mean_squared_error,
  over_examples,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 4))
LABELS = np.array([0, 3, 1, 1, 2, 0])


def _softmax(logits):
  exponentials = np.exp(logits)
  return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_cross_entropy_is_the_mean_negative_log_likelihood():
  likelihoods = _softmax(LOGITS)[np.arange(6), LABELS]
  np.testing.assert_allclose(
    cross_entropy(LOGITS, LABELS), -np.log(likelihoods).mean(), rtol=1e-5
  )


def test_gradient_of_cross_entropy_is_softmax_minus_one_hot_over_n():
  expected = (_softmax(LOGITS) - np.eye(4)[LABELS]) / 6
  np.testing.assert_allclose(
    jax.grad(cross_entropy)(jnp.asarray(LOGITS, jnp.float32), LABELS),
    expected,
    atol=1e-6,
  )


@pytest.mark.parametrize("ways", [2, 5, 20])
def test_cross_entropy_of_equal_logits_is_the_log_of_the_classes(ways):
  labels = jnp.arange(7) % ways
  np.testing.assert_allclose(
    cross_entropy(jnp.full((7, ways), 12.5), labels), np.log(ways), rtol=1e-6
  )


def test_cross_entropy_of_huge_logits_does_not_overflow():
  # exp(1e4) is infinite; the losses are 0 (right) and 1e4 (wrong), mean 5e3.
  logits = jnp.array([[1e4, 0.0], [1e4, 0.0]])
  labels = jnp.array([0, 1])
  loss, gradient = jax.jit(jax.value_and_grad(cross_entropy))(logits, labels)
  np.testing.assert_allclose(loss, 5e3, rtol=1e-6)
  np.testing.assert_allclose(gradient, [[0, 0], [0.5, -0.5]], atol=1e-6)


@pytest.mark.parametrize("label", [-1, -5, 4, 7])
def test_cross_entropy_of_a_label_that_is_no_class_is_nan(label):
  """A label of -1 was taken for the last class.

  The gradient was finite, so that inner loops adapted to such labels.
  """
  labels = np.append(LABELS[1:], label)
  loss, gradient = jax.jit(jax.value_and_grad(cross_entropy))(LOGITS, labels)
  assert np.isnan(loss)
  assert np.isnan(gradient[-1]).all() and np.isfinite(gradient[:-1]).all()


@pytest.mark.parametrize("label", [-1, 4])
def test_padding_may_have_a_label_that_is_no_class(label):
  real = np.arange(len(LABELS)) < len(LABELS) - 1
  labels = np.where(real, LABELS, label)
  found = jax.value_and_grad(
    lambda logits: over_examples(cross_entropy, logits, labels, real)
  )(LOGITS)
  expected = jax.value_and_grad(cross_entropy)(LOGITS[:-1], LABELS[:-1])
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
  np.testing.assert_allclose(found[1][:-1], expected[1], rtol=1e-5, atol=1e-7)
  assert not found[1][-1].any()


@pytest.mark.parametrize("loss_fn", [cross_entropy, accuracy])
def test_a_masked_batch_of_no_example_has_a_loss_of_zero(loss_fn):
  """It was a division by zero in Python; a batch of padding alone was 0."""
  for n in (0, 2):
    batch = np.zeros((n, 4)), np.zeros(n, int), np.zeros(n, bool)
    assert over_examples(loss_fn, *batch) == 0


def test_the_name_of_a_loss_is_no_loss():
  with pytest.raises(ValueError, match="^loss_fn: 'cross_entropy' given, must"):
    over_examples("cross_entropy", LOGITS, LABELS)


def test_accuracy_counts_rows_that_peak_at_their_label():
  logits = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 0.1], [5.0, 4.0]])
  # The peaks are 1, 0, 1, 0.
  assert accuracy(logits, jnp.array([1, 0, 0, 0])) == 0.75
  assert accuracy(logits, jnp.array([0, 1, 0, 1])) == 0.0


@pytest.mark.parametrize("of_none", [np.nan, -np.inf])
def test_logits_that_predict_nothing_are_wrong(of_none):
  """A model that diverged had the accuracy of a guess: `argmax` is 0."""
  logits = np.full((4, 4), of_none)
  logits[3, 3] = 1
  labels = np.array([0, 0, 3, 3])
  right = 0.25 if np.isneginf(of_none) else 0.0
  assert accuracy(logits, labels) == right
  found = accuracy_by_presentation(jnp.asarray(logits), labels)[:2]
  np.testing.assert_array_equal(found, [0, right * 2])


def test_accuracy_by_presentation_of_a_sequence_made_by_hand():
  labels = jnp.array([0, 1, 0, 2, 0, 1])
  answers = jnp.array([0, 0, 1, 2, 0, 1])
  # First examples are at 0, 1, 3: right, wrong, right. Second ones at 2 and 5:
  # wrong, right. Class 0 alone has a third one, at 4, and no class a fourth.
  np.testing.assert_allclose(
    accuracy_by_presentation(jax.nn.one_hot(answers, 3), labels),
    [2 / 3, 1 / 2, 1, np.nan, np.nan, np.nan],
    rtol=1e-6,
  )


def test_accuracy_by_presentation_equals_a_count():
  rng = np.random.default_rng(1)
  by_presentation = jax.jit(accuracy_by_presentation)
  for _ in range(20):
    logits, labels = rng.normal(size=(12, 4)), rng.integers(0, 4, 12)
    right, total, seen = [0] * 12, [0] * 12, dict.fromkeys(range(4), 0)
    for row, label in zip(logits, labels, strict=True):
      place = seen[label]
      seen[label] += 1
      total[place] += 1
      right[place] += max(row) == row[label]
    expected = [
      r / t if t else np.nan for r, t in zip(right, total, strict=True)
    ]
    found = by_presentation(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mean_squared_error_is_a_mean_over_examples_and_outputs():
  predictions = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
  targets = jnp.array([[0.0, 2.0], [3.0, 1.0], [2.0, 0.0]])
  # (1 + 0 + 0 + 9 + 4 + 0) / 6
  np.testing.assert_allclose(
    mean_squared_error(predictions, targets), 14 / 6, rtol=1e-6
  )
  np.testing.assert_allclose(
    jax.grad(mean_squared_error)(predictions, targets),
    2 * (predictions - targets) / 6,
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  "loss_fn, predictions, targets",
  [
    # Shapes that would broadcast in silence.
    (mean_squared_error, (5, 1), (5,)),
    (mean_squared_error, (5, 1), (1, 1)),
    (cross_entropy, (5, 3), (5, 1)),
    (cross_entropy, (5,), (5,)),
    (accuracy, (5, 3), (5, 1)),
    (accuracy, (5,), (5,)),
    (accuracy_by_presentation, (5, 3), (5, 1)),
    (accuracy_by_presentation, (5,), (5,)),
  ],
)
def test_shapes_that_would_broadcast_are_refused(loss_fn, predictions, targets):
  with pytest.raises((AssertionError, ValueError)):
    loss_fn(jnp.zeros(predictions), jnp.zeros(targets, jnp.int32))


@pytest.mark.parametrize(
  "loss_fn", [cross_entropy, accuracy, accuracy_by_presentation]
)
def test_one_label_for_many_rows_is_refused(loss_fn):
  with pytest.raises((AssertionError, ValueError)):
    loss_fn(jnp.zeros((5, 3)), jnp.zeros(1, jnp.int32))


def test_squares_of_bytes_and_of_float16_do_not_overflow():
  bytes_ = np.array([[0], [255]], np.uint8)
  assert mean_squared_error(bytes_, bytes_[::-1]) == 255**2
  halves = jnp.full((3, 1), 300, jnp.float16)
  mask = jnp.array([True, True, False])
  for loss in (
    mean_squared_error(halves, 0 * halves),
    over_examples(mean_squared_error, halves, 0 * halves, mask),
  ):
    assert loss == 300**2


def test_logits_may_be_integers():
  found = cross_entropy(jnp.array([[1, 2]]), jnp.array([0]))
  np.testing.assert_allclose(found, np.log(1 + np.e), rtol=1e-6)


@pytest.mark.parametrize(
  "logits, labels, named",
  [
    ((6, 4), jax.nn.one_hot(LABELS, 4), "labels: float32 .*argmax"),
    ((6, 4), jax.nn.one_hot(LABELS, 4, dtype=jnp.int32), "logits of .*argmax"),
    ((6, 4), jnp.zeros(6), "labels: float32 given, must be .* classes.$"),
    ((6, 4), jnp.zeros((6, 1), jnp.int32), r"logits of .* and \[...\].$"),
  ],
)
@pytest.mark.parametrize("loss_fn", [cross_entropy, accuracy])
def test_labels_of_another_form_are_refused(loss_fn, logits, labels, named):
  with pytest.raises(ValueError, match=f"^{named}"):
    loss_fn(jnp.zeros(logits), labels)


@pytest.mark.parametrize(
  "loss_fn, name, targets",
  [
    (cross_entropy, "logits", jnp.zeros(5, jnp.int32)),
    (accuracy, "logits", jnp.zeros(5, jnp.int32)),
    (mean_squared_error, "predictions", jnp.zeros((5, 3))),
  ],
)
@pytest.mark.parametrize("kind", [tuple, lambda x: dict(enumerate(x))])
def test_what_a_model_returns_beside_is_named(loss_fn, name, targets, kind):
  predictions = kind((jnp.zeros((5, 3)), jnp.zeros((5, 2))))
  with pytest.raises(ValueError, match=f"^{name}: a (tuple|dict) of 2 given"):
    loss_fn(predictions, targets)


COLUMN, ROW = jnp.arange(3.0)[:, None], jnp.arange(3.0)


@pytest.mark.parametrize(
  "loss_fn",
  [
    lambda p, t: jnp.mean((p - t) ** 2),
    jax.jit(lambda p, t: jnp.mean((p - t) ** 2)),
    lambda p, t: optax.huber_loss(p, t).mean(),
  ],
)
@pytest.mark.parametrize("given", [(COLUMN, ROW), (ROW, COLUMN)])
def test_a_loss_that_broadcasts_is_warned_of(loss_fn, given):
  with pytest.warns(UserWarning, match=r"^loss_fn: .* become \[3, 3\]"):
    over_examples(loss_fn, *given)


@pytest.mark.parametrize(
  "loss_fn, given",
  [
    (lambda p, t: jnp.mean((p[:, 0] - t) ** 2), (COLUMN, ROW)),
    (lambda p, t: jnp.mean((p - t) ** 2), (COLUMN, COLUMN)),
    # Of a single example the differences are right.
    (lambda p, t: jnp.mean((p - t) ** 2), (COLUMN[:1], ROW[:1])),
  ],
)
def test_a_loss_that_does_not_broadcast_is_not(loss_fn, given):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    over_examples(loss_fn, *given)


@pytest.mark.parametrize("mask", [None, jnp.zeros(0, bool)])
@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_the_mean_of_no_example_is_zero(mask, shape):
  value, slope = jax.value_and_grad(masked_mean)(jnp.zeros(shape), mask)
  assert value == 0 and slope.shape == shape
