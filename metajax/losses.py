"""Losses and scores of one batch: `(predictions, targets) -> scalar`."""

import math
import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Jaxpr, jaxprs_in_params

from metajax.forward import takes_mask
from metajax.numerics import wide
from metajax.types import Array, LossFn


def over_examples(
  loss_fn: LossFn, predictions: Any, targets: Any, mask: Array | None = None
) -> Array:
  """Computes a loss or a score over the real examples of a batch.

  ::

    sum_i m_i loss(p_i, t_i) / sum_i m_i

  Without a mask this is `loss_fn(predictions, targets)`. With a mask, a
  `loss_fn` that takes `mask` receives it. Any other `loss_fn` is called on each
  example alone, which gives the same for a mean over examples. The result is 0
  if no example is real.

  Args:
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    predictions: a tree of arrays `[n, ...]`.
    targets: a tree of arrays `[n, ...]`.
    mask: `[n]` bool, or None.

  Warns:
    UserWarning: if the loss of predictions `[n, 1]` and targets `[n]`, or the
      other way round, computes `[n, n]` differences by JAX's broadcasting.
  """
  if not callable(loss_fn):
    raise ValueError(
      f"loss_fn: {loss_fn!r} given, must be a function (predictions, targets) "
      "-> scalar, such as metajax.losses.cross_entropy."
    )
  if mask is None:
    _warn_of_broadcasting(loss_fn, predictions, targets)
    return loss_fn(predictions, targets)
  if takes_mask(loss_fn):
    return loss_fn(predictions, targets, mask=mask)  # type: ignore[call-arg]

  def one(prediction: Any, target: Any) -> Array:
    return loss_fn(*jax.tree.map(lambda x: x[None], (prediction, target)))

  # Padding may have any label, also one that is no class.
  targets = jax.tree.map(lambda x: _without_padding(x, mask), targets)
  return masked_mean(jax.vmap(one)(predictions, targets), mask)


def masked_mean(values: Array, mask: Array | None) -> Array:
  """Averages `values` `[n, ...]` over the real examples; 0 if none is real."""
  if mask is None and values.shape[0]:
    return values.mean()
  if mask is None:  # No example at all.
    mask = jnp.zeros(0, bool)
  count = mask.sum() * math.prod(values.shape[1:])
  column = mask.reshape(-1, *[1] * (values.ndim - 1))
  dtype = jnp.promote_types(values.dtype, jnp.float32)
  total = jnp.where(column, values, 0).sum(dtype=dtype)
  mean = total / jnp.maximum(count, 1)
  is_float = jnp.issubdtype(values.dtype, jnp.floating)
  return mean.astype(values.dtype) if is_float else mean


def cross_entropy(logits: Array, labels: Array) -> Array:
  """Mean cross-entropy: `-1/n sum_i log softmax(logits_i)[labels_i]`.

  Args:
    logits: `[..., classes]`.
    labels: `[...]` integers.

  Returns:
    A scalar, in nats. It and its gradient are NaN if a label is no class.
  """
  check_labels(logits, labels)
  # A negative index would count from the end, the last class for -1.
  is_class = (labels >= 0) & (labels < logits.shape[-1])
  losses = optax.softmax_cross_entropy_with_integer_labels(
    wide(logits), jnp.where(is_class, labels, 0)
  )
  # A factor makes the gradient NaN, too. An inner loop uses nothing else.
  return (losses * jnp.where(is_class, 1, jnp.nan)).mean()


def accuracy(logits: Array, labels: Array) -> Array:
  """Fraction of `logits` `[..., classes]` whose largest entry is the label's.

  `labels` are integers `[...]`. Logits with a NaN, as those of a model that
  diverged, are a wrong prediction, and not a guess.
  """
  check_labels(logits, labels)
  return jnp.mean(_are_right(logits, labels))


def accuracy_by_presentation(
  logits: Array, labels: Array, mask: Array | None = None
) -> Array:
  """Accuracy at the first, second, ... example of each class in a sequence.

  Args:
    logits: `[n, classes]`, predictions in the order of the sequence.
    labels: `[n]` integers.
    mask: `[n]` bool, True for real examples; None: all are real.

  Returns:
    `[n]`. Entry k - 1 is the fraction of classes whose k-th example was
    predicted correctly (Santoro et al. 2016, figure 2). NaN if no class has k
    examples.
  """
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_equal_shape_prefix([logits, labels], 1)
  real = jnp.ones(len(labels), bool) if mask is None else mask
  same = (labels[:, None] == labels[None, :]) & real[None, :]
  earlier = jnp.tril(same, -1).sum(-1)
  at = (earlier[None, :] == jnp.arange(len(labels))[:, None]) & real[None, :]
  right = _are_right(logits, labels)
  return (at & right).sum(-1) / at.sum(-1)


def mean_squared_error(predictions: Array, targets: Array) -> Array:
  """Mean of `(predictions - targets)^2` over examples and outputs `[n, d]`."""
  _check_arrays(predictions=predictions, targets=targets)
  if jnp.shape(predictions) != jnp.shape(targets):
    raise ValueError(
      f"predictions of shape {jnp.shape(predictions)} and targets of shape "
      f"{jnp.shape(targets)}: must be equal. Targets of a model with one "
      "output are [n, 1]."
    )
  return jnp.mean(jnp.square(wide(predictions) - wide(targets)))


def check_labels(logits: Array, labels: Array) -> None:
  """Raises a `ValueError` unless labels are integers, one for each example."""
  _check_arrays(logits=logits, labels=labels)
  one_hot = jnp.ndim(labels) > 1 and jnp.shape(labels) == jnp.shape(logits)
  fix = " Of one-hot labels, take labels.argmax(-1)." if one_hot else ""
  if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
    raise ValueError(
      f"labels: {jnp.result_type(labels)} given, must be integers, the classes."
      + fix
    )
  if jnp.shape(logits)[:-1] != jnp.shape(labels):
    raise ValueError(
      f"logits of shape {jnp.shape(logits)} and labels of shape "
      f"{jnp.shape(labels)}: must be [..., classes] and [...]." + fix
    )


def _are_right(logits: Array, labels: Array) -> Array:
  """Returns `[...]`, whether the largest logit is the label's."""
  # Of a NaN, and of classes that are all masked, `argmax` is some class.
  known = jnp.max(logits, axis=-1) > -jnp.inf
  return (jnp.argmax(logits, axis=-1) == labels) & known


def _without_padding(labels: Array, mask: Array) -> Array:
  """Sets the labels of padding to 0; targets that are numbers stay."""
  if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
    return labels
  return jnp.where(mask.reshape(-1, *[1] * (jnp.ndim(labels) - 1)), labels, 0)


def _check_arrays(**given: Any) -> None:
  """Raises a `ValueError` for a tree where one array is due."""
  for name, x in given.items():
    if isinstance(x, tuple | dict):
      raise ValueError(
        f"{name}: a {type(x).__name__} of {len(x)} given, must be one array. "
        "If the model returns more, give a loss of your own that takes its "
        "part."
      )


def _warn_of_broadcasting(
  loss_fn: LossFn, predictions: Any, targets: Any
) -> None:
  shapes: list[Any] = [
    getattr(x, "shape", None) for x in (predictions, targets)
  ]
  n = max((shape[0] for shape in shapes if shape), default=0)
  if n < 2 or {(n,), (n, 1)} != set(shapes):
    return
  if _has_shape(jax.make_jaxpr(loss_fn)(predictions, targets).jaxpr, (n, n)):
    one, other = (list(shape or ()) for shape in shapes)
    warnings.warn(
      f"loss_fn: predictions {one} and targets {other} "
      f"become [{n}, {n}] by broadcasting, each prediction beside every "
      "target. Give both the same shape.",
      stacklevel=3,
    )


def _has_shape(jaxpr: Jaxpr, shape: tuple[int, ...]) -> bool:
  """Tells whether a result within a program has the shape."""
  return any(
    any(getattr(x.aval, "shape", None) == shape for x in eqn.outvars)
    or any(_has_shape(inner, shape) for inner in jaxprs_in_params(eqn.params))
    for eqn in jaxpr.eqns
  )
