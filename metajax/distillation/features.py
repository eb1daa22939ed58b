"""Losses between the features of a student and of a teacher."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax

from metajax.distillation.losses import fixed, pair
from metajax.numerics import root, wide
from metajax.types import Array


def hint(
  features: Array,
  teacher_features: Array,
  regressor: Callable[[Array], Array] | None = None,
) -> Array:
  """Computes the squared distance of mapped student features to the teacher's.

  ::

    1/2 |teacher - r(student)|^2,  mean over examples and features

  Args:
    features: the student's features, `[n, ...]`.
    teacher_features: `[n, ...]`, treated as a constant.
    regressor: r, which maps the student's shape to the teacher's. Its
      parameters are learned with the student's. If None, it is the identity.

  Raises:
    ValueError: if the shapes differ, or if `teacher_features` is not finite.
      Traced values are not checked.

  References:
    Romero et al., `FitNets: Hints for Thin Deep Nets
    <https://arxiv.org/abs/1412.6550>`_, 2015, equation 3 (a sum over features).
  """
  mapped = features if regressor is None else regressor(features)
  student, teacher = pair(mapped, teacher_features, "features")
  return jnp.square(student - teacher).mean() / 2


def attention_transfer(features: Array, teacher_features: Array) -> Array:
  """Computes the squared distance of the spatial attention maps of networks.

  ::

    |Q_s / |Q_s| - Q_t / |Q_t||^2,  Q = mean over channels of features^2

  Q is a map over positions, and |Q| its norm. The loss is a mean over examples.
  The numbers of channels may differ.

  Args:
    features: `[n, height, width, channels]`.
    teacher_features: `[n, height, width, other channels]`, treated as a
      constant.

  Raises:
    ValueError: for features without positions; if the height, the width or the
      number of examples differs; or if `teacher_features` is not finite. Traced
      values are not checked.

  References:
    Zagoruyko and Komodakis, `Paying More Attention to Attention
    <https://arxiv.org/abs/1612.03928>`_, 2017, equation 2 (not squared in the
    paper).
  """

  def attention(x: Array) -> Array:
    if x.ndim < 3:
      raise ValueError(
        f"features of shape {x.shape}: must be [n, height, width, channels]; "
        "without positions, use hint."
      )
    return jnp.square(wide(x)).mean(-1)

  student, teacher = (
    x.reshape(x.shape[0], -1)
    for x in pair(
      attention(features), attention(teacher_features), "attention maps"
    )
  )
  return jnp.square(_unit(student) - _unit(teacher)).sum(-1).mean()


def relational_distance(embeddings: Array, teacher_embeddings: Array) -> Array:
  """Computes the Huber loss between scaled pairwise distances.

  ::

    mean over pairs of  huber(d_s / mean(d_s) - d_t / mean(d_t))

  Args:
    embeddings: `[n, d]`, at least 2 examples.
    teacher_embeddings: `[n, other d]`, treated as a constant.

  Raises:
    ValueError: for arrays of other axes; if the numbers of examples differ or
      are less than 2; or if `teacher_embeddings` is not finite. Traced values
      are not checked.

  References:
    Park et al., `Relational Knowledge Distillation
    <https://arxiv.org/abs/1904.05068>`_, 2019, section 3.2.1.
  """
  student, teacher = _examples(embeddings, teacher_embeddings, 2)
  pairs = np.triu_indices(student.shape[0], 1)

  def distances(x: Array) -> Array:
    found = _norm(x[pairs[0]] - x[pairs[1]])
    return found / jnp.maximum(found.mean(), 1e-12)

  return optax.huber_loss(distances(student), distances(teacher)).mean()


def relational_angle(embeddings: Array, teacher_embeddings: Array) -> Array:
  """Computes the Huber loss between cosines of angles in triples of examples.

  ::

    mean over triples of  huber(cos_s(i, j, k) - cos_t(i, j, k))

  where cos(i, j, k) is the cosine of the angle at example j.

  Args:
    embeddings: `[n, d]`, at least 3 examples. The cost grows as `n^3`.
    teacher_embeddings: `[n, other d]`, treated as a constant.

  Raises:
    ValueError: for arrays of other axes; if the numbers of examples differ or
      are less than 3; or if `teacher_embeddings` is not finite. Traced values
      are not checked.

  References:
    Park et al., `Relational Knowledge Distillation
    <https://arxiv.org/abs/1904.05068>`_, 2019, section 3.2.2.
  """
  student, teacher = _examples(embeddings, teacher_embeddings, 3)
  size = student.shape[0]

  def cosines(x: Array) -> Array:
    towards = x[None] - x[:, None]  # [j, i, d]: from j to i.
    unit = _unit(towards)
    return jnp.einsum("jid,jkd->jik", unit, unit)

  distinct = 1 - np.eye(size)
  triples = distinct[:, :, None] * distinct[:, None, :] * distinct[None]
  errors = optax.huber_loss(cosines(student), cosines(teacher))
  return (triples * errors).sum() / triples.sum()


def _examples(
  student: Array, teacher: Array, at_least: int
) -> tuple[Array, Array]:
  for x in (student, teacher):
    if x.ndim != 2:
      raise ValueError(f"embeddings of shape {x.shape}: must be [n, d].")
  sizes = student.shape[0], teacher.shape[0]
  if sizes[0] != sizes[1] or sizes[0] < at_least:
    raise ValueError(
      f"embeddings of {sizes[0]} and {sizes[1]} examples: must be of the same "
      f"{at_least} or more."
    )
  return wide(student), fixed(teacher)


def _norm(x: Array) -> Array:
  """Returns norms over the last axis, whose gradient at 0 is 0."""
  return root(jnp.square(x).sum(-1))


def _unit(x: Array) -> Array:
  return x / jnp.maximum(_norm(x), 1e-12)[..., None]
