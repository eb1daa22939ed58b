"""Classifiers that are fitted to the features of one task."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metajax.batches import flat, only_array
from metajax.numerics import check_counts, check_number, wide
from metajax.types import Array, Params

# The logit of a class without examples, as a fraction of the largest number of
# the dtype. Its softmax is 0, and sums and differences of it stay finite.
ABSENT = -0.25
# Accelerators multiply float32 with fewer digits by default.
HIGHEST = jax.lax.Precision.HIGHEST


class Head(NamedTuple):
  """A classifier of features as two pure functions.

  Both are differentiable, with one exception: the fit of `logistic`. Its line
  search is a loop of unknown length, which has no reverse-mode derivative. Use
  `logistic` for features that are not trained through the head.

  The heads of this module refuse labels below 0, and of `ways` or more, if the
  values are known. If they are traced, such a label makes all logits NaN.
  Labels of padding may have any value.

  Attributes:
    fit: `(features [n, d], labels [n], mask=None) -> head_params`. It uses the
      examples where the mask `[n]` is True.
    predict: `(head_params, features [n, d]) -> logits [n, ways]`.
  """

  fit: Callable[..., Params]
  predict: Callable[[Params, Array], Array]


def nearest_mean(ways: int | None = None) -> Head:
  """Classifies by the nearest class mean, as prototypical networks do.

  ::

    logits_c = -|f - mean of class c|^2

  A class without support examples has the logit `ABSENT`. It is finite and
  below all others, so that the class is never predicted.

  Args:
    ways: number of classes. If None, it is the number of examples, which is
      enough if each of the classes 0, 1, ... has an example.

  Raises:
    ValueError: if `ways` is less than 1. From `fit`, for labels that are not
      integers or out of range.

  References:
    Snell et al., `Prototypical Networks for Few-shot Learning
    <https://arxiv.org/abs/1703.05175>`_, 2017, equations 1 and 2.
  """
  _check_ways(ways)

  def fit(features: Array, labels: Array, mask: Array | None = None) -> Params:
    features = seen(features, mask)
    members = members_of(labels, mask, ways, features.dtype)
    counts = members.sum(0)
    sums = jnp.matmul(members.T, features, precision=HIGHEST)
    means = sums / jnp.maximum(counts, 1)[:, None]
    # NaN, of a label out of range, counts as present.
    return {"means": means, "present": counts != 0}

  def predict(head: Params, features: Array) -> Array:
    # |f - m|^2 by one matrix product. The means' centre is subtracted first,
    # so that fewer digits cancel.
    present = head["present"][:, None]
    # The means of absent classes are 0. All classes may be absent.
    count = present.sum(dtype=head["means"].dtype)
    centre = head["means"].sum(0) / jnp.maximum(count, 1)
    means = jnp.where(present, head["means"] - centre, 0)
    features = wide(features) - centre
    own = jnp.square(features).sum(-1)[:, None]
    products = jnp.matmul(features, means.T, precision=HIGHEST)
    logits = 2 * products - jnp.square(means).sum(-1) - own
    return without_absent(logits, head["present"])

  return Head(fit, predict)


def cosine(ways: int | None = None) -> Head:
  """Nearest class mean by the cosine of the angle.

  ::

    logits_c = scale cos(f, mean of class c)

  with the head's "scale", if it has one, else 1. A class that the support lacks
  has the logit `ABSENT`.

  Args:
    ways: number of classes; None: as many as there are examples.

  References:
    Chen et al., `Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot
    Learning <https://arxiv.org/abs/2003.04390>`_, 2021, equations 1 and 2.
  """

  def predict(head: Params, features: Array) -> Array:
    means = unit_length(head["means"])
    products = jnp.matmul(unit_length(features), means.T, precision=HIGHEST)
    return without_absent(head.get("scale", 1) * products, head["present"])

  return Head(nearest_mean(ways).fit, predict)


def unit_length(features: Array) -> Array:
  """Scales each vector to length 1; that of zeros stays what it is."""
  features = wide(features)
  squares = jnp.square(features).sum(-1, keepdims=True)
  return features / jnp.sqrt(squares + 1e-12)


def without_absent(logits: Array, present: Array) -> Array:
  """Sets the logit of a class to `ABSENT` if `present [ways]` is False."""
  absent = jnp.asarray(ABSENT * float(jnp.finfo(logits.dtype).max))
  return jnp.where(present, logits, absent.astype(logits.dtype))


def ridge(ways: int | None = None, strength: ArrayLike = 1.0) -> Head:
  """Fits ridge regression with an offset that is not penalised.

  ::

    min_W,b  |F W + b - Y|^2 + strength |W|^2

  The system is solved in feature space or in example space, whichever is
  smaller (Woodbury identity). Y are the labels as one-hot vectors. Labels that
  are numbers, `[n, ways]`, are used unchanged. A class without support examples
  has the logit `ABSENT`. Matrix products use the highest precision of the
  device.

  Args:
    ways: number of classes. If None, it is the number of examples. Not used if
      the labels are numbers.
    strength: strength of the penalty, positive.

  Raises:
    ValueError: if `ways` is less than 1, or `strength` is not positive. A
      traced value is not checked. From `fit`, for classes that are out of
      range.

  References:
    Bertinetto et al., `Meta-learning with differentiable closed-form solvers
    <https://arxiv.org/abs/1805.08136>`_, 2019, equations 6 and 7.
  """
  _check_ways(ways)
  check_number("strength", strength, above=0)

  def fit(features: Array, labels: Array, mask: Array | None = None) -> Params:
    return ridge_fit(features, labels, ways, strength, mask)

  return Head(fit, ridge_predict)


def ridge_fit(
  features: Array,
  labels: Array,
  ways: int | None,
  strength: ArrayLike,
  mask: Array | None = None,
) -> Params:
  """Solves `ridge`. The strength may be a traced, learned number."""
  features = seen(features, mask)
  is_class = are_classes(labels)
  if is_class:
    targets = members_of(labels, mask, ways, features.dtype)
  else:
    targets = seen(as_vectors(labels, 0, features.dtype), mask)
  real = jnp.ones(len(features), features.dtype)
  if mask is not None:
    real = mask.astype(features.dtype)
  count = jnp.maximum(real.sum(), 1)
  rows = real[:, None]
  offset, centre = ((rows * z).sum(0) / count for z in (targets, features))
  # Rows of padding are zero in both x and y.
  x, y = rows * (features - centre), rows * (targets - offset)
  n, d = x.shape
  product = functools.partial(jnp.matmul, precision=HIGHEST)
  if n < d:
    gram = product(x, x.T) + strength * jnp.eye(n, dtype=x.dtype)
    weights = product(x.T, jnp.linalg.solve(gram, y))
  else:
    gram = product(x.T, x) + strength * jnp.eye(d, dtype=x.dtype)
    weights = jnp.linalg.solve(gram, product(x.T, y))
  head = {"weights": weights, "offset": offset - product(centre, weights)}
  return {**head, "present": targets.any(0)} if is_class else head


def ridge_predict(head: Params, features: Array) -> Array:
  """Predicts with the result of `ridge_fit`, times `head["scale"]` if given."""
  products = jnp.matmul(features, head["weights"], precision=HIGHEST)
  scores = head.get("scale", 1) * (products + head["offset"])
  if "present" not in head:
    return scores
  return without_absent(scores, head["present"])


def logistic(ways: int, strength: ArrayLike = 1.0, num_steps: int = 50) -> Head:
  """Fits multinomial logistic regression by L-BFGS.

  ::

    min_W,b  sum over examples of CE(F W + b, Y) + strength / 2 |W|^2

  This is scikit-learn's objective with `C = 1 / strength`.

  Args:
    ways: number of classes.
    strength: strength of the penalty, positive.
    num_steps: iterations; 50 are enough for features of norm about 1.

  Raises:
    ValueError: if `ways` is less than 1, or `strength` is not positive. A
      traced value is not checked. From `fit`, for labels that are not integers
      or out of range.

  References:
    Tian et al., `Rethinking Few-Shot Image Classification: a Good Embedding Is
    All You Need? <https://arxiv.org/abs/2003.11539>`_, 2020, section 3.2.
  """
  check_counts(ways=ways, num_steps=num_steps)
  check_number("strength", strength, above=0)
  optimizer = optax.lbfgs()

  def fit(features: Array, labels: Array, mask: Array | None = None) -> Params:
    features = seen(features, mask)
    members = members_of(labels, mask, ways, features.dtype)

    def loss(params: Params) -> Array:
      # Rows of padding are zero, and so is their loss.
      losses = optax.softmax_cross_entropy(predict(params, features), members)
      penalty = jnp.square(params["weights"]).sum()
      return losses.sum() + strength / 2 * penalty

    def step(carry, _):
      params, state = carry
      value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
      updates, state = optimizer.update(
        grads, state, params, value=value, grad=grads, value_fn=loss
      )
      return (optax.apply_updates(params, updates), state), None

    start = {
      "weights": jnp.zeros((features.shape[1], ways), features.dtype),
      "offset": jnp.zeros(ways, features.dtype),
    }
    carry = start, optimizer.init(start)
    return jax.lax.scan(step, carry, None, length=num_steps)[0][0]

  def predict(params: Params, features: Array) -> Array:
    products = jnp.matmul(features, params["weights"], precision=HIGHEST)
    return products + params["offset"]

  return Head(fit, predict)


def seen(features: Array, mask: Array | None) -> Array:
  """Returns features in float32 at least, and zeros for padding.

  Squares, sums and solvers need so many digits. Padding may be infinite or NaN,
  as that of a network that divides inputs of zeros by their norm.
  """
  features = wide(features)
  if mask is None:
    return features
  return jnp.where(jnp.asarray(mask, bool)[:, None], features, 0)


def as_vectors(
  targets: Array, num_outputs: int, dtype: Any, mask: Array | None = None
) -> Array:
  """Returns labels as vectors, `[n, num_outputs]`.

  Classes `[n]` become one-hot vectors, and zeros for padding. A class out of
  range is refused if its value is known, and becomes NaN if not. Numbers
  `[n, num_outputs]` are only cast to `dtype`.

  Raises:
    ValueError: for a class below 0, or of `num_outputs` or more.
  """
  if are_classes(targets):
    return _one_hot(targets, num_outputs, dtype, mask)
  return flat(targets).astype(dtype)


def are_classes(targets: Array) -> bool:
  """Whether targets are classes (integers) or numbers.

  Raises:
    ValueError: for bools, which could be either.
  """
  if targets.dtype == bool:
    raise ValueError(
      "targets: bool given, must be integers, the classes, or floats."
    )
  return jnp.issubdtype(targets.dtype, jnp.integer)


def members_of(
  labels: Array, mask: Array | None, ways: int | None, dtype: Any
) -> Array:
  """Returns one-hot labels `[n, ways]`; rows of padding are zero."""
  labels = only_array(labels, "targets", "a head of classes")
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"targets: {labels.dtype} given, must be integers, the classes."
    )
  return _one_hot(labels, ways or len(labels), dtype, mask)


def _one_hot(
  labels: Array, num_classes: int, dtype: Any, mask: Array | None
) -> Array:
  if labels.ndim != 1:
    raise ValueError(
      f"targets: shape {labels.shape}, must be [n], the class of each example."
    )
  mask = None if mask is None else jnp.asarray(mask, bool)
  real = True if mask is None else mask
  if not any(isinstance(x, jax.core.Tracer) for x in (labels, real)):
    known = np.asarray(labels)
    wrong = known[((known < 0) | (known >= num_classes)) & np.asarray(real)]
    if wrong.size:
      raise ValueError(
        f"targets: class {wrong[0]} given, must be 0 to {num_classes - 1}; "
        "give more ways, or number the classes of a task from 0."
      )
  is_wrong = ((labels < 0) | (labels >= num_classes)) & real
  vectors = jax.nn.one_hot(labels, num_classes, dtype=dtype)
  if mask is not None:
    vectors = jnp.where(mask[:, None], vectors, 0)
  return jnp.where(is_wrong[:, None], jnp.nan, vectors)


def _check_ways(ways: int | None) -> None:
  if ways is not None:
    check_counts(ways=ways)
