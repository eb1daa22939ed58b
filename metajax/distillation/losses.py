"""Losses between the outputs of a student and those of a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.types import Array

# Below, log E exp is computed by its series, which cancels nothing.
SMALL = 0.5


def softened_kl(
  student_logits: Array, teacher_logits: Array, temperature: float = 1.0
) -> Array:
  """Divergence of softened predictions, in units that do not depend on T.

  ::

    T^2 KL(softmax(teacher / T) || softmax(student / T)),  mean over examples

  The factor keeps the size of the gradient when T changes. As T grows, the loss
  tends to `logit_matching`. Computed in float32 at least, and without the
  cancellation by which differences of log probabilities lose all their digits
  at high T.

  Args:
    student_logits: `[n, classes]`.
    teacher_logits: `[n, classes]`; no gradient is taken of it.
    temperature: T, positive.

  Returns:
    A scalar, in nats; zero if and only if the predictions are equal.

  Raises:
    ValueError: if T is not positive, the class counts differ, or the teacher's
      logits are known and not finite.

  References:
    Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.
  """
  _check_temperature(temperature)
  student, teacher = _check_logits(student_logits, teacher_logits)
  divergence = _kl(teacher / temperature, student / temperature)
  return temperature**2 * divergence.mean()


def knowledge_distillation(
  student_logits: Array,
  teacher_logits: Array,
  labels: Array,
  *,
  temperature: float = 4.0,
  alpha: float = 0.9,
) -> Array:
  """The classic loss: some of the labels, some of the teacher.

  ::

    (1 - alpha) CE(student, labels) + alpha T^2 KL(teacher_T || student_T)

  Args:
    student_logits: `[n, classes]`.
    teacher_logits: `[n, classes]`.
    labels: `[n]` integers.
    temperature: T, positive.
    alpha: how much the teacher counts, in [0, 1].

  Returns:
    A scalar, in nats.

  Raises:
    ValueError: if alpha is out of range; see `softened_kl`.

  References:
    Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f"alpha={alpha}: must be 0 to 1.")
  soft = softened_kl(student_logits, teacher_logits, temperature)
  hard = optax.softmax_cross_entropy_with_integer_labels(
    wide(student_logits), labels
  ).mean()
  return (1 - alpha) * hard + alpha * soft


def logit_matching(student_logits: Array, teacher_logits: Array) -> Array:
  """Squared distance of centred logits, the limit of `softened_kl` at high T.

  ::

    1 / (2 N) |z - mean(z) - (v - mean(v))|^2,  mean over examples

  Args:
    student_logits: z, `[n, N]`.
    teacher_logits: v, `[n, N]`; no gradient is taken of it.

  Raises:
    ValueError: if the class counts differ, or the teacher's logits are known
      and not finite.

  References:
    Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.1.
  """
  student, teacher = _check_logits(student_logits, teacher_logits)
  difference = student - teacher
  centred = difference - difference.mean(-1, keepdims=True)
  return jnp.square(centred).mean() / 2


def label_smoothing(logits: Array, labels: Array, smoothing: float) -> Array:
  """Cross-entropy with a teacher who knows the label but is never sure.

  ::

    (1 - s) CE(student, labels) + s CE(student, uniform)

  It is distillation from a uniform teacher at T = 1: up to the constant entropy
  `s log N`, `knowledge_distillation` with zero logits and alpha = s.

  Args:
    logits: `[n, N]`.
    labels: `[n]` integers.
    smoothing: s, in [0, 1].

  Returns:
    A scalar, in nats.

  Raises:
    ValueError: if `smoothing` is out of range.

  References:
    Szegedy et al., `Rethinking the Inception Architecture for Computer Vision
    <https://arxiv.org/abs/1512.00567>`_, 2016, section 7.
  """
  if not 0 <= smoothing <= 1:
    raise ValueError(f"smoothing={smoothing}: must be 0 to 1.")
  logits = wide(logits)
  targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  targets = optax.smooth_labels(targets, smoothing)
  return optax.softmax_cross_entropy(logits, targets).mean()


def mutual_learning(
  cohort_logits: Array, labels: Array, *, temperature: float = 1.0
) -> Array:
  """Losses of a cohort of students who learn from each other.

  ::

    L_k = CE(student_k, labels)
          + 1/(K-1) sum_{l != k} T^2 KL(student_l || student_k)

  where the gradient of a term reaches student k only.

  Args:
    cohort_logits: `[students, n, classes]`, at least 2 students.
    labels: `[n]` integers.
    temperature: T, positive; the paper's is 1.

  Returns:
    Losses `[students]`, in nats; their sum trains them all.

  Raises:
    ValueError: for fewer than 2 students; see `softened_kl`.

  References:
    Zhang et al., `Deep Mutual Learning <https://arxiv.org/abs/1706.00384>`_,
    2018, equation 8.
  """
  size = cohort_logits.shape[0]
  if size < 2:
    raise ValueError(f"cohort_logits: {size} student, must be 2 or more.")
  logits = wide(cohort_logits)

  def of_student(student: Array) -> tuple[Array, Array]:
    soft = jax.vmap(lambda peer: softened_kl(student, peer, temperature))
    hard = optax.softmax_cross_entropy_with_integer_labels(student, labels)
    return hard.mean(), soft(logits)

  hard, pairs = jax.vmap(of_student)(logits)
  # A student is no distance from itself.
  return hard + pairs.sum(1) / (size - 1)


def regression_distillation(
  predictions: Array, teacher_predictions: Array
) -> Array:
  """Mean squared distance of predictions `[n, ...]`, half of it.

  ::

    1/2 |student - teacher|^2,  mean over examples and outputs

  Raises:
    ValueError: if the shapes differ, or the teacher is known and not finite.
  """
  student, teacher = pair(predictions, teacher_predictions, "predictions")
  return jnp.square(student - teacher).mean() / 2


def _kl(p_logits: Array, q_logits: Array) -> Array:
  """`KL(p || q)` over the last axis, exact also where p and q nearly agree.

  With d = q_logits - p_logits less its mean under p: KL = log E_p exp(d).
  """
  log_p = jax.nn.log_softmax(p_logits)
  p = jnp.exp(log_p)
  d = q_logits - p_logits
  d = d - (p * d).sum(-1, keepdims=True)
  is_small = jnp.abs(d).max(-1, keepdims=True) < SMALL
  small = jnp.where(is_small, d, 0.0)
  # exp(d) - 1 - d, whose first two terms have mean zero; 9 terms are exact to
  # float32 (and to 1e-9 in float64) for |d| < 0.5.
  series = jnp.zeros_like(small)
  for k in range(10, 1, -1):
    series = (series + 1) * small / k
  series = series * small
  near = jnp.log1p((p * series).sum(-1))
  far = jax.nn.logsumexp(log_p + jnp.where(is_small, 0.0, d), axis=-1)
  return jnp.where(is_small[..., 0], near, far)


def _check_temperature(temperature: float) -> None:
  if not temperature > 0:
    raise ValueError(f"temperature={temperature}: must be above 0.")


def _check_logits(student: Array, teacher: Array) -> tuple[Array, Array]:
  if student.shape[-1] != teacher.shape[-1]:
    raise ValueError(
      f"the student has {student.shape[-1]} classes but the teacher "
      f"{teacher.shape[-1]}: they must be equal."
    )
  return pair(student, teacher, "logits")


def pair(student: Array, teacher: Array, what: str) -> tuple[Array, Array]:
  """Returns both in float32 at least, the teacher as a constant."""
  if student.shape != teacher.shape:
    raise ValueError(
      f"{what}: the student's have shape {student.shape} but the teacher's "
      f"{teacher.shape}."
    )
  return wide(student), fixed(teacher)


def fixed(teacher: Array) -> Array:
  """The teacher in float32 at least, as a constant."""
  if not isinstance(teacher, jax.core.Tracer):
    if not np.isfinite(np.asarray(teacher, np.float32)).all():
      raise ValueError("the teacher's outputs are not finite.")
  return jax.lax.stop_gradient(wide(teacher))


def wide(x: Array) -> Array:
  """Returns `x` in float32 at least."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
