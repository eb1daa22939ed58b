"""Distillation losses against numpy float64 and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.distillation import (
  knowledge_distillation,
  label_smoothing,
  logit_matching,
  mutual_learning,
  regression_distillation,
  softened_kl,
)

DRAW = np.random.default_rng(0)
STUDENT, TEACHER = (DRAW.normal(size=(6, 5)) * 3 for _ in range(2))
LABELS = DRAW.integers(0, 5, 6)
TEMPERATURES = [0.05, 0.5, 1.0, 4.0, 30.0, 1000.0]


def _log_softmax(x):
  x = np.asarray(x, np.longdouble)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _kl(student, teacher, temperature):
  """In extended precision: differences of logs lose digits at high T."""
  q, p = (_log_softmax(x / temperature) for x in (student, teacher))
  return float(temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean())


def _cross_entropy(logits, labels):
  return float(-_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def _float32(*arrays):
  return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_divergence_is_right_at_every_temperature_in_float32(
  temperature, scale
):
  """Also of predictions that nearly agree, where a plain sum is noise."""
  teacher = TEACHER.astype(np.float32)
  student = (TEACHER + scale * STUDENT).astype(np.float32)
  found = softened_kl(*_float32(student, teacher), temperature)
  expected = _kl(student.astype(float), teacher.astype(float), temperature)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_is_temperature_times_difference_of_probabilities(temperature):
  student, teacher = STUDENT.astype(np.float32), TEACHER.astype(np.float32)
  found = jax.grad(softened_kl)(*_float32(student, teacher), temperature)
  q, p = (
    np.exp(_log_softmax(x.astype(float) / temperature))
    for x in (student, teacher)
  )
  expected = np.asarray(temperature * (q - p) / len(student), float)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)


def test_series_and_logsumexp_meet_where_they_change_over():
  """KL and its gradient do not jump where |d| passes 1/2."""
  teacher = jnp.asarray(TEACHER[:1], jnp.float32)
  direction = jnp.asarray(STUDENT[:1], jnp.float32)

  def line(step):
    return softened_kl(teacher + step * direction, teacher)

  steps = jnp.linspace(0.0, 0.4, 401)
  values, slopes = jax.jit(jax.vmap(jax.value_and_grad(line)))(steps)
  expected = [
    _kl(TEACHER[:1] + float(s) * STUDENT[:1], TEACHER[:1], 1.0) for s in steps
  ]
  np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-6)
  assert np.abs(np.diff(slopes, 2)).max() < 1e-4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 1000.0])
def test_half_precision_logits_are_widened(dtype, temperature):
  student, teacher = (jnp.asarray(x, dtype) for x in (STUDENT, TEACHER))
  loss, grads = jax.value_and_grad(softened_kl)(student, teacher, temperature)
  expected = _kl(np.float64(student), np.float64(teacher), temperature)
  assert loss.dtype == jnp.float32
  assert grads.dtype == dtype
  assert np.isfinite(np.float32(grads)).all()
  np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_far_predictions_stay_finite_at_low_temperature():
  student = jnp.array([[1000.0, -1000.0, 0.0]])
  teacher = jnp.array([[-1000.0, 1000.0, 0.0]])
  loss, grads = jax.value_and_grad(softened_kl)(student, teacher, 0.05)
  np.testing.assert_allclose(loss, 0.05**2 * 2000 / 0.05, rtol=1e-5)
  np.testing.assert_allclose(grads, [[0.05, -0.05, 0.0]], atol=1e-6)


def test_divergence_is_zero_only_where_predictions_are_equal():
  student, teacher = _float32(STUDENT, TEACHER)
  assert softened_kl(teacher, teacher) == 0
  # Logits that differ by a constant make the same predictions.
  np.testing.assert_allclose(softened_kl(teacher + 7, teacher), 0, atol=1e-10)
  assert softened_kl(student, teacher) > 0.1


# Student and teacher: masked by -1e9, by -inf, the top k classes, both.
INF = np.inf
MASKS = {
  "teacher, finite": ([1, 2, 3], [1, 2, -1e9]),
  "teacher, infinite": ([1, 2, 3], [1, 2, -INF]),
  "teacher, lowest float": ([1, 2, 3], [1, 2, -3.4e38]),
  "teacher, barely": ([1, 2, 3], [1, 2, -60]),
  "top 1 of 4": ([1, 2, 3, 4], [-INF, 7, -INF, -INF]),
  "both, infinite": ([1, 2, -INF], [2, 1, -INF]),
  "both, finite": ([1, 2, -1e9], [2, 1, -1e9]),
  "both, each its way": ([1, 2, -INF], [2, 1, -1e9]),
  "student, finite": ([1, 2, -1e9], [1, 2, 3]),
  "another level": ([10001.5, 10002.25, 10003], [1.25, 2.5, -INF]),
  "agree but for a hair": ([1, 2, 3, -12], [1, 2, 3, -INF]),
  "agree nearly": ([1, 2 + 2**-8, 3, -INF], [1, 2, 3, -INF]),
}


@jax.jit
def _with_slopes(student, teacher, temperature):
  return jax.value_and_grad(softened_kl, argnums=(0, 2))(
    student, teacher, temperature
  )


def _masked_kl(student, teacher, temperature):
  """As `_kl`, with 0 log 0 = 0, and the gradient by the student."""
  q, p = (_log_softmax(x / temperature) for x in (student, teacher))
  mass = np.exp(p)
  real = mass > 0
  terms = np.zeros_like(mass)
  terms[real] = mass[real] * (p[real] - q[real])
  gradient = temperature * (np.exp(q) - mass) / len(student)
  return float(temperature**2 * terms.sum(-1).mean()), np.float64(gradient)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_divergence_of_masked_classes_is_right(name, temperature):
  """Value, and gradients by the student's logits and the temperature."""
  student, teacher = (np.float32([x]) for x in MASKS[name])
  found, (grads, slope) = _with_slopes(student, teacher, temperature)
  student, teacher = (x.astype(np.longdouble) for x in (student, teacher))
  expected, expected_grads = _masked_kl(student, teacher, temperature)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-30)
  np.testing.assert_allclose(
    grads, expected_grads, rtol=2e-4, atol=2e-7 * temperature
  )
  h = 1e-3 * temperature
  ends = [
    _masked_kl(student, teacher, temperature + step)[0] for step in (h, -h)
  ]
  difference = (ends[0] - ends[1]) / (2 * h)
  scale = expected / temperature
  np.testing.assert_allclose(slope, difference, rtol=1e-3, atol=1e-3 * scale)


def test_every_class_may_be_masked_in_one_example_or_another():
  """Examples do not meet: the mean over a batch is that of its examples."""
  rows = [v for v in MASKS.values() if len(v[0]) == 3]
  student, teacher = (jnp.float32(x) for x in zip(*rows, strict=True))
  found, (grads, _) = _with_slopes(student, teacher, 2.0)
  alone = [
    _with_slopes(s[None], t[None], 2.0)
    for s, t in zip(student, teacher, strict=True)
  ]
  np.testing.assert_allclose(found, np.mean([x[0] for x in alone]), rtol=1e-6)
  expected = np.concatenate([x[1][0] for x in alone]) / len(rows)
  np.testing.assert_allclose(grads, expected, rtol=1e-5, atol=1e-8)


def test_equal_masks_are_equal_and_a_class_too_many_is_not():
  logits = jnp.array([[1.0, 2.0, -jnp.inf], [3.0, -1e9, 0.5]])
  assert softened_kl(logits, logits) == 0
  other = logits.at[0, 2].set(-20.0)
  expected = np.exp(-20) / (np.exp(1) + np.exp(2)) / 2
  np.testing.assert_allclose(softened_kl(other, logits), expected, rtol=1e-5)


def test_class_that_only_the_student_masks_is_infinite_but_not_its_gradient():
  student = jnp.array([[1.0, 2.0, -jnp.inf]])
  teacher = jnp.array([[1.0, 2.0, 3.0]])
  loss, (grads, _) = _with_slopes(student, teacher, 2.0)
  assert loss == np.inf
  _, expected = _masked_kl(np.array([[1, 2, -1e9]]), np.array([[1, 2, 3]]), 2.0)
  np.testing.assert_allclose(grads[0, :2], expected[0, :2], rtol=1e-5)
  assert grads[0, 2] == 0  # Nothing moves it from there.


@pytest.mark.slow
def test_hessian_with_masks_is_that_of_the_log_normaliser():
  with jax.enable_x64(True):
    student, teacher = (jnp.array(x, float) for x in MASKS["top 1 of 4"])
    found = jax.hessian(lambda s: softened_kl(s[None], teacher[None], 2.0))(
      student
    )
    q = np.exp(np.float64(_log_softmax(np.array(MASKS["top 1 of 4"][0]) / 2)))
    np.testing.assert_allclose(found, np.diag(q) - np.outer(q, q), rtol=1e-10)


def test_divergence_is_exact_in_float64():
  teacher = np.array([[1.0, 2.0, 3.0, -INF], [0.3, 2.0, -1e9, 1.0]])
  # Where they nearly agree, float64 logits themselves tell d to few digits.
  for scale, rtol in ((1e-4, 1e-10), (0.1, 1e-12), (0.5, 1e-12), (9.0, 1e-12)):
    student = teacher + scale * np.array([[0.2, -1, 0.5, 3], [1, 0.1, 0.2, -1]])
    with jax.enable_x64(True):
      found = softened_kl(jnp.array(student), jnp.array(teacher), 1.5)
    expected, _ = _masked_kl(*map(np.longdouble, (student, teacher)), 1.5)
    np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.slow
def test_nothing_of_what_counts_for_nothing_is_counted():
  """Where the labels, or the teacher, are infinitely far but weigh 0."""
  student = jnp.array([[1.0, 2.0, -jnp.inf]])
  far, near = jnp.array([2]), jnp.array([1])
  taught = jax.jit(jax.value_and_grad(knowledge_distillation))
  loss, grads = taught(student, student, far, temperature=1.0, alpha=1.0)
  assert loss == 0
  np.testing.assert_array_equal(grads, jnp.zeros((1, 3)))
  loss, grads = taught(
    student, jnp.zeros((1, 3)), near, temperature=1.0, alpha=0.0
  )
  np.testing.assert_allclose(loss, np.log1p(np.exp(-1)), rtol=1e-6)
  assert np.isfinite(grads).all()
  smoothed = jax.value_and_grad(label_smoothing)
  loss, grads = smoothed(student, near, 0.0)
  np.testing.assert_allclose(loss, np.log1p(np.exp(-1)), rtol=1e-6)
  assert np.isfinite(grads).all()
  assert smoothed(student, near, 0.1)[0] == np.inf


@pytest.mark.slow
def test_peers_may_mask_what_their_peers_mask():
  cohort = np.stack([STUDENT, TEACHER, STUDENT[::-1]])
  masked = np.concatenate([cohort, np.full((3, 6, 1), -INF)], axis=-1)
  found, grads = jax.jit(
    jax.value_and_grad(lambda x: mutual_learning(x, LABELS).sum())
  )(jnp.float32(masked))
  expected, without = jax.value_and_grad(
    lambda x: mutual_learning(x, LABELS).sum()
  )(jnp.float32(cohort))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(grads[..., :5], without, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(grads[..., 5], jnp.zeros((3, 6)))


@pytest.mark.slow
def test_hyper_parameters_are_swept_and_learned():
  student, teacher = _float32(STUDENT, TEACHER)

  def loss(alpha, temperature):
    return knowledge_distillation(
      student, teacher, LABELS, temperature=temperature, alpha=alpha
    )

  alphas, temperatures = jnp.array([0.0, 0.3, 1.0]), jnp.array([0.5, 2.0, 9.0])
  found = jax.vmap(loss)(alphas, temperatures)
  expected = [
    loss(float(a), float(t)) for a, t in zip(alphas, temperatures, strict=True)
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  slope = jax.grad(loss)(0.3, 2.0)
  np.testing.assert_allclose(
    slope,
    _kl(STUDENT, TEACHER, 2.0) - _cross_entropy(STUDENT, LABELS),
    rtol=1e-5,
  )
  by_smoothing = jax.grad(label_smoothing, argnums=2)(student, LABELS, 0.2)
  uniform = -float(_log_softmax(STUDENT).mean())
  np.testing.assert_allclose(
    by_smoothing, uniform - _cross_entropy(STUDENT, LABELS), rtol=1e-5
  )


@pytest.mark.slow
def test_high_temperature_is_logit_matching():
  """Value and gradient (Hinton et al. 2015, equation 4)."""
  student, teacher = _float32(STUDENT, TEACHER)
  for value in (softened_kl, jax.grad(softened_kl)):
    limit = (
      logit_matching if value is softened_kl else jax.grad(logit_matching)
    )(student, teacher)
    far = np.abs(value(student, teacher, 1000.0) - limit).max()
    near = np.abs(value(student, teacher, 100.0) - limit).max()
    assert far < 0.02 * np.abs(limit).max()
    # The difference falls as 1 / T.
    assert near / far == pytest.approx(10, rel=0.2)


def test_logit_matching_is_the_closed_form():
  difference = STUDENT - TEACHER
  difference -= difference.mean(1, keepdims=True)
  found = logit_matching(*_float32(STUDENT, TEACHER))
  np.testing.assert_allclose(found, (difference**2).mean() / 2, rtol=1e-5)


def test_factor_keeps_the_size_of_the_gradient_over_temperatures():
  student, teacher = _float32(0.3 * STUDENT, 0.3 * TEACHER)
  norms = [
    np.linalg.norm(jax.grad(softened_kl)(student, teacher, t))
    for t in (1.0, 3.0, 10.0, 100.0)
  ]
  assert max(norms) < 1.6 * min(norms)
  # Without it, it falls as 1 / T^2.
  assert norms[-1] / 100.0**2 < 1e-3 * norms[0]


def test_no_gradient_reaches_the_teacher():
  grads = jax.grad(softened_kl, argnums=1)(*_float32(STUDENT, TEACHER))
  np.testing.assert_array_equal(grads, np.zeros_like(TEACHER))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_knowledge_distillation_mixes_labels_and_teacher(alpha):
  found = knowledge_distillation(
    *_float32(STUDENT, TEACHER), LABELS, temperature=3.0, alpha=alpha
  )
  hard, soft = _cross_entropy(STUDENT, LABELS), _kl(STUDENT, TEACHER, 3.0)
  expected = (1 - alpha) * hard + alpha * soft
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_label_smoothing_is_distillation_from_a_uniform_teacher():
  (student,) = _float32(STUDENT)
  smoothed = label_smoothing(student, LABELS, 0.2)
  uniform = -_log_softmax(STUDENT).mean()
  expected = 0.8 * _cross_entropy(STUDENT, LABELS) + 0.2 * float(uniform)
  np.testing.assert_allclose(smoothed, expected, rtol=1e-5)
  distilled = knowledge_distillation(
    student, jnp.zeros_like(student), LABELS, temperature=1.0, alpha=0.2
  )
  np.testing.assert_allclose(smoothed - distilled, 0.2 * np.log(5), rtol=1e-4)


def test_mutual_learning_teaches_every_student_by_every_other():
  cohort = np.stack([STUDENT, TEACHER, STUDENT[::-1]])
  found = jax.jit(mutual_learning)(jnp.asarray(cohort, jnp.float32), LABELS)
  for k in range(3):
    peers = [_kl(cohort[k], cohort[j], 1.0) for j in range(3) if j != k]
    expected = _cross_entropy(cohort[k], LABELS) + np.mean(peers)
    np.testing.assert_allclose(found[k], expected, rtol=1e-5)

  def of_all(logits):
    return mutual_learning(logits, LABELS).sum()

  def of_first(student):
    logits = jnp.asarray(cohort, jnp.float32)
    soft = sum(softened_kl(student, logits[j]) for j in (1, 2)) / 2
    hard = optax.softmax_cross_entropy_with_integer_labels(student, LABELS)
    return hard.mean() + soft

  grads = jax.jit(jax.grad(of_all))(jnp.asarray(cohort, jnp.float32))
  expected = jax.jit(jax.grad(of_first))(jnp.asarray(cohort[0], jnp.float32))
  np.testing.assert_allclose(grads[0], expected, rtol=1e-4, atol=1e-6)


def test_regression_distillation_is_half_the_mean_square():
  found = regression_distillation(*_float32(STUDENT, TEACHER))
  expected = ((STUDENT - TEACHER) ** 2).mean() / 2
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bad_input_is_named():
  student, teacher = _float32(STUDENT, TEACHER)
  for temperature in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match=r"temperature=.*must be above 0"):
      softened_kl(student, teacher, temperature)
  with pytest.raises(ValueError, match="5 classes but the teacher 4"):
    softened_kl(student, teacher[:, :4])
  with pytest.raises(ValueError, match="teacher's outputs are not finite"):
    logit_matching(student, teacher.at[2, 1].set(jnp.nan))
  with pytest.raises(ValueError, match="teacher's outputs are not finite"):
    logit_matching(student, teacher.at[2, 1].set(-jnp.inf))
  for bad in (
    teacher.at[2, 1].set(jnp.nan),
    teacher.at[2, 1].set(jnp.inf),
    teacher.at[2].set(-jnp.inf),
  ):
    with pytest.raises(ValueError, match="only -inf is allowed"):
      softened_kl(student, bad)
  with pytest.raises(ValueError, match=r"alpha=1\.5: must be 0 to 1"):
    knowledge_distillation(student, teacher, LABELS, alpha=1.5)
  with pytest.raises(ValueError, match=r"smoothing=-0\.1: must be 0 to 1"):
    label_smoothing(student, LABELS, -0.1)
  with pytest.raises(ValueError, match="1 student, must be 2 or more"):
    mutual_learning(student[None], LABELS)
  cohort = jnp.stack([student, teacher.at[2, 1].set(jnp.nan)])
  with pytest.raises(ValueError, match="only -inf is allowed"):
    mutual_learning(cohort, LABELS)
  with pytest.raises(ValueError, match="shape"):
    regression_distillation(student, teacher[:3])


@pytest.mark.parametrize("temperature", [[1.0, 2.0, 3.0], [2.0]])
def test_several_temperatures_are_not_broadcast(temperature):
  logits = jnp.ones((3, 3))
  with pytest.raises(ValueError, match="^temperature of shape .* one number"):
    softened_kl(logits, logits, jnp.array(temperature))
