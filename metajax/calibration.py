"""Calibration: whether probabilities are those of what happens."""

import jax
import jax.numpy as jnp

from metajax.losses import check_labels, masked_mean
from metajax.numerics import check_counts, check_number, wide
from metajax.predictive import Predictive, check_shapes
from metajax.types import Array, LossFn

# The levels of the intervals of `calibration_error`.
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def coverage(level: float) -> LossFn:
  """Returns the score: which fraction of targets is in central intervals.

  ::

    (1 - level) / 2  <=  F(y)  <=  (1 + level) / 2

  with F the cumulative distribution. For exact distributions of continuous
  targets the score's expectation is `level`.

  Args:
    level: the probability of the interval, between 0 and 1.

  Raises:
    ValueError: for another level.
  """
  check_number("level", level, above=0, below=1)

  def score(predictions: Predictive, targets: Array) -> Array:
    check_shapes(predictions, targets)
    return jnp.mean(_level(predictions, targets) <= level)

  return score


def calibration_error(
  predictions: Predictive, targets: Array, mask: Array | None = None
) -> Array:
  """Mean distance of coverage and level, over nine central intervals.

  ::

    1/9 sum_l |coverage(l) - l|,  l = 0.1, 0.2, ..., 0.9

  The coverage is over the examples of one batch, that is of one task. Few
  examples cover a level by chance only, so exact distributions have an error,
  too: about `0.34 / sqrt(n)` for n independent targets.

  Args:
    predictions: of n examples.
    targets: `[n, d]`.
    mask: `[n]`, True for real examples; None: all are real.
  """
  check_shapes(predictions, targets)
  at = _level(predictions, targets)
  errors = [
    jnp.abs(masked_mean((at <= level).astype(at.dtype), mask) - level)
    for level in LEVELS
  ]
  return jnp.stack(errors).mean()


def expected_calibration_error(
  logits: Array,
  labels: Array,
  mask: Array | None = None,
  *,
  num_bins: int = 15,
) -> Array:
  """Mean distance of confidence and accuracy, of a classifier.

  ::

    sum_b n_b / n |accuracy_b - confidence_b|

  Bin b has the n_b examples whose confidence, the largest probability, is in
  `(b / num_bins, (b + 1) / num_bins]`.

  Args:
    logits: `[n, classes]`.
    labels: `[n]` integers.
    mask: `[n]`, True for real examples; None: all are real.
    num_bins: the number of bins.

  Returns:
    A scalar, 0 to 1.

  Raises:
    ValueError: for less than one bin, or labels of another shape or dtype.

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017, section 2.
  """
  check_counts(num_bins=num_bins)
  check_labels(logits, labels)
  real = jnp.ones(len(labels), bool) if mask is None else mask
  confidence = jax.nn.softmax(wide(logits), axis=-1).max(-1)
  right = jnp.argmax(logits, axis=-1) == labels
  bins = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1)
  surplus = jnp.where(real, right - confidence, 0)
  sums = jax.ops.segment_sum(surplus, bins.astype(int), num_bins)
  return jnp.abs(sums).sum() / jnp.maximum(real.sum(), 1)


def _level(predictions: Predictive, targets: Array) -> Array:
  """Returns the level of the smallest central interval with each target."""
  return jnp.abs(2 * predictions.cdf(targets) - 1)
