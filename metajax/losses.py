"""Losses and scores of one batch: `(predictions, targets) -> scalar`."""

import chex
import jax.numpy as jnp
import optax

from metajax.types import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
  """Mean cross-entropy: `-1/n sum_i log softmax(logits_i)[labels_i]`.

  Args:
    logits: `[n, classes]`.
    labels: `[n]` integers.

  Returns:
    A scalar, in nats.
  """
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_equal_shape_prefix([logits, labels], 1)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: Array, labels: Array) -> Array:
  """Fraction of the rows of `logits` `[n, classes]` whose peak is the label."""
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_equal_shape_prefix([logits, labels], 1)
  return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def accuracy_by_presentation(logits: Array, labels: Array) -> Array:
  """Accuracy at the first, second, ... example of a class in a sequence.

  Args:
    logits: `[n, classes]`, predictions in the sequence's order.
    labels: `[n]` integers.

  Returns:
    `[n]`: at k - 1 the fraction of classes whose k-th example was told right;
    NaN where no class has so many (Santoro et al. 2016, figure 2).
  """
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_equal_shape_prefix([logits, labels], 1)
  same = labels[:, None] == labels[None, :]
  earlier = jnp.tril(same, -1).sum(-1)
  at = earlier[None, :] == jnp.arange(len(labels))[:, None]
  right = jnp.argmax(logits, axis=-1) == labels
  return (at & right).sum(-1) / at.sum(-1)


def mean_squared_error(predictions: Array, targets: Array) -> Array:
  """Mean of `(predictions - targets)^2` over examples and outputs `[n, d]`."""
  chex.assert_equal_shape([predictions, targets])
  return jnp.mean(jnp.square(predictions - targets))
