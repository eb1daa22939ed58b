"""Losses between the outputs of a student and of a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax.losses import cross_entropy
from metajax.numerics import check_number, largest_logits, wide
from metajax.types import Array

# For |d| below this, exp(d) - 1 - d is computed by its series, to avoid
# cancellation.
SMALL = 0.5

# Added to the largest logit, it replaces the -inf of a masked class. The class
# has probability 0 at every temperature, and 0 times the logit is 0.
MASKED = -1e25


def softened_kl(
  student_logits: Array, teacher_logits: Array, temperature: ArrayLike = 1.0
) -> Array:
  """Computes the KL divergence of softened predictions, times T^2.

  ::

    T^2 KL(softmax(teacher / T) || softmax(student / T)),  mean over examples

  The factor T^2 keeps the size of the gradient if T changes. As T grows, the
  loss tends to `logit_matching`. It is computed in float32 at least. At high T,
  differences of log probabilities would cancel all digits; the computation
  avoids them.

  A logit of -inf, or a very negative one, masks a class. A teacher may thus
  keep its top k classes only. The divergence is infinite if the student masks a
  class that the teacher does not mask. Its gradient is finite even then.

  Args:
    student_logits: `[n, classes]`.
    teacher_logits: `[n, classes]`, treated as a constant.
    temperature: T, positive.

  Returns:
    A scalar, in nats; zero if and only if the predictions are equal.

  Raises:
    ValueError: if T is not one positive number, or the shapes differ; if the
      teacher's logits hold NaN or +inf, or mask all classes of an example.
      Traced values are not checked.

  References:
    Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.
  """
  check_number("temperature", temperature, above=0)
  if jnp.shape(temperature) != ():
    raise ValueError(
      f"temperature of shape {jnp.shape(temperature)}: must be one number; use "
      "jax.vmap for several."
    )
  _check_classes(student_logits, teacher_logits)
  check_masked(teacher_logits)
  teacher = jax.lax.stop_gradient(wide(teacher_logits))
  divergence = _kl(teacher, wide(student_logits), temperature)
  return temperature**2 * divergence.mean()


def knowledge_distillation(
  student_logits: Array,
  teacher_logits: Array,
  labels: Array,
  *,
  temperature: ArrayLike = 4.0,
  alpha: ArrayLike = 0.9,
) -> Array:
  """Computes the classic distillation loss, from labels and from a teacher.

  ::

    (1 - alpha) CE(student, labels) + alpha T^2 KL(teacher_T || student_T)

  Args:
    student_logits: `[n, classes]`.
    teacher_logits: `[n, classes]`.
    labels: `[n]` integers.
    temperature: T, positive.
    alpha: weight of the teacher's term, in [0, 1].

  Returns:
    A scalar, in nats.

  Raises:
    ValueError: if alpha is out of range; see `softened_kl`.

  References:
    Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.
  """
  check_number("alpha", alpha, at_least=0, at_most=1)
  soft = softened_kl(student_logits, teacher_logits, temperature)
  hard = cross_entropy(wide(student_logits), labels)
  return mix(alpha, hard, soft)


def logit_matching(student_logits: Array, teacher_logits: Array) -> Array:
  """Computes the squared distance of centred logits.

  It is the limit of `softened_kl` at high T.

  ::

    1 / (2 N) |z - mean(z) - (v - mean(v))|^2,  mean over examples

  Args:
    student_logits: z, `[n, N]`.
    teacher_logits: v, `[n, N]`, treated as a constant.

  Raises:
    ValueError: if the shapes differ, or if the teacher's logits are not finite.
      Traced values are not checked. Leave masked classes out of both arrays, or
      use `softened_kl`.

  References:
    Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.1.
  """
  _check_classes(student_logits, teacher_logits)
  student, teacher = pair(student_logits, teacher_logits, "logits")
  difference = student - teacher
  centred = difference - difference.mean(-1, keepdims=True)
  return jnp.square(centred).mean() / 2


def label_smoothing(
  logits: Array, labels: Array, smoothing: ArrayLike
) -> Array:
  """Computes the cross-entropy with smoothed labels.

  ::

    (1 - s) CE(student, labels) + s CE(student, uniform)

  Label smoothing is distillation from a uniform teacher. It is equal to
  `knowledge_distillation` with zero teacher logits, T = 1 and alpha = s, up to
  the constant entropy `s log N`. With s > 0, it is infinite if the student
  masks a class.

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
  check_number("smoothing", smoothing, at_least=0, at_most=1)
  logits = wide(logits)
  hard = cross_entropy(logits, labels)
  uniform = -jax.nn.log_softmax(logits).mean(-1)
  return mix(smoothing, hard, uniform.mean())


def mutual_learning(
  cohort_logits: Array, labels: Array, *, temperature: ArrayLike = 1.0
) -> Array:
  """Computes the losses of a cohort of students that learn from each other.

  ::

    L_k = CE(student_k, labels)
          + 1/(K-1) sum_{l != k} T^2 KL(student_l || student_k)

  The gradient of L_k reaches student k only.

  Args:
    cohort_logits: `[students, n, classes]`, at least 2 students.
    labels: `[n]` integers.
    temperature: T, positive; the paper's is 1.

  Returns:
    Losses `[students]`, in nats. Minimise their sum to train all students.

  Raises:
    ValueError: for fewer than 2 students; see `softened_kl`.

  References:
    Zhang et al., `Deep Mutual Learning <https://arxiv.org/abs/1706.00384>`_,
    2018, equation 8.
  """
  size = cohort_logits.shape[0]
  if size < 2:
    raise ValueError(f"cohort_logits: {size} student, must be 2 or more.")
  # Here, because under `vmap` the logits of a peer are traced.
  check_masked(cohort_logits)
  logits = wide(cohort_logits)

  def of_student(student: Array) -> tuple[Array, Array]:
    soft = jax.vmap(lambda peer: softened_kl(student, peer, temperature))
    return cross_entropy(student, labels), soft(logits)

  hard, pairs = jax.vmap(of_student)(logits)
  # The divergence of a student from itself is 0, so the sum may include it.
  return hard + pairs.sum(1) / (size - 1)


def regression_distillation(
  predictions: Array, teacher_predictions: Array
) -> Array:
  """Computes half the mean squared distance of predictions `[n, ...]`.

  ::

    1/2 |student - teacher|^2,  mean over examples and outputs

  The teacher is treated as a constant.

  Raises:
    ValueError: if the shapes differ, or if the teacher is not finite. Traced
      values are not checked.
  """
  student, teacher = pair(predictions, teacher_predictions, "predictions")
  return jnp.square(student - teacher).mean() / 2


def mix(alpha: ArrayLike, first: Array, second: Array) -> Array:
  """Returns `(1 - alpha) first + alpha second`; 0 times infinity is 0."""
  return share(1 - alpha, first) + share(alpha, second)


def share(weight: ArrayLike, value: Array) -> Array:
  """Returns `weight * value`, where 0 times infinity is 0."""
  is_void = (weight == 0) & jnp.isinf(value)
  return jnp.multiply(weight, jnp.where(is_void, 0, value))


@jax.jit
def _kl(p_logits: Array, q_logits: Array, temperature: ArrayLike) -> Array:
  """Returns `KL(p || q)` over the last axis, accurate even for similar p and q.

  With e = (q_logits - p_logits) / T and d = e - E_p e::

    KL = log E_p exp(d) = log(1 + sum_i p_i (exp(d_i) - 1 - d_i))

  All terms of the sum are positive, so that nothing cancels.
  """
  is_masked = jnp.isneginf(q_logits)
  p_top, q_top = (
    jax.lax.stop_gradient(x.max(-1, keepdims=True))
    for x in (p_logits, q_logits)
  )
  p_logits = _bounded(p_logits, p_top + MASKED)
  q_logits = _bounded(q_logits, q_top + MASKED)
  # A shift that all classes share does not change KL, but costs digits of d.
  # Subtracting it rounds, too, so it is subtracted only if it is large.
  shift = jnp.where(jnp.abs(q_top - p_top) > temperature, q_top - p_top, 0)
  q_logits = q_logits - shift
  d = (q_logits - p_logits) / temperature
  p_logits, q_logits = ((x - p_top) / temperature for x in (p_logits, q_logits))
  total = jax.nn.logsumexp(p_logits, axis=-1, keepdims=True)
  p = jnp.exp(p_logits - total)
  mean = (p * d).sum(-1, keepdims=True)
  d = d - mean
  far = jax.nn.logsumexp(q_logits, axis=-1, keepdims=True) - total - mean
  is_near = far < 1
  log_q = jnp.where(is_near, q_logits - total - mean, 0.0)  # log(p exp(d))
  is_small = jnp.abs(d) < SMALL
  terms = jnp.where(
    is_small,
    p * _second_order(jnp.where(is_small, d, 0.0)),
    jnp.exp(log_q) - p - p * d,
  )
  near = jnp.log1p(jnp.where(is_near, terms, 0.0).sum(-1, keepdims=True))
  impossible = (is_masked & (p > 0)).any(-1)
  return jnp.where(is_near, near, far)[..., 0] + jnp.where(
    impossible, jnp.inf, 0.0
  )


def _bounded(x: Array, bound: Array) -> Array:
  """Raises values to the bound; finite values keep their gradient."""
  finite = jnp.where(jnp.isneginf(x), 0, x)
  kept = bound + (finite - jax.lax.stop_gradient(finite))
  return jnp.where(x > bound, x, kept)


def _second_order(x: Array) -> Array:
  """Returns `exp(x) - 1 - x` for |x| < 0.5, by its series up to rounding."""
  num_terms = 10 if jnp.finfo(x.dtype).bits == 32 else 17
  series = jnp.zeros_like(x)
  for k in range(num_terms, 1, -1):
    series = (series + 1) * x / k
  return series * x


def _check_classes(student: Array, teacher: Array) -> None:
  if student.shape[-1] != teacher.shape[-1]:
    raise ValueError(
      f"the student has {student.shape[-1]} classes but the teacher "
      f"{teacher.shape[-1]}: they must be equal."
    )
  _check_shapes(student, teacher, "logits")


def _check_shapes(student: Array, teacher: Array, what: str) -> None:
  if student.shape != teacher.shape:
    raise ValueError(
      f"{what}: the student's have shape {student.shape} but the teacher's "
      f"{teacher.shape}."
    )


def check_masked(logits: Array) -> None:
  """Checks a teacher's logits, in which -inf masks a class, unless traced.

  Raises:
    ValueError: for NaN or +inf, or if all classes of an example are masked.
  """
  if isinstance(logits, jax.core.Tracer):
    return
  if not np.isfinite(np.asarray(largest_logits(logits), float)).all():
    raise ValueError(
      "the teacher's outputs are not finite: of logits only -inf is allowed, "
      "for a masked class, and not for all classes of an example."
    )


def pair(student: Array, teacher: Array, what: str) -> tuple[Array, Array]:
  """Returns both in float32 at least; the teacher gets no gradient."""
  _check_shapes(student, teacher, what)
  return wide(student), fixed(teacher)


def fixed(teacher: Array) -> Array:
  """Returns the teacher in float32 at least, without a gradient."""
  if not isinstance(teacher, jax.core.Tracer):
    if not np.isfinite(np.asarray(teacher, float)).all():
      raise ValueError("the teacher's outputs are not finite.")
  return jax.lax.stop_gradient(wide(teacher))
