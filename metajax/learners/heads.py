"""Classifiers fitted to the features of one task, in closed form or nearly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.types import Array, Params


class Head(NamedTuple):
  """A classifier of features as two pure functions.

  Both are differentiable, but for the fit of `logistic`, whose line search
  takes as many steps as it needs: it is for features that stay as they are.

  Attributes:
    fit: `(features [n, d], labels [n]) -> head_params`.
    predict: `(head_params, features [n, d]) -> logits [n, ways]`.
  """

  fit: Callable[[Array, Array], Params]
  predict: Callable[[Params, Array], Array]


def nearest_mean(ways: int) -> Head:
  """Nearest class mean by squared distance, the head of prototypical networks.

  ::

    logits_c = -|f - mean of class c|^2

  A class that the support lacks has NaN for its mean, and for its logits.

  References:
    Snell et al., `Prototypical Networks for Few-shot Learning
    <https://arxiv.org/abs/1703.05175>`_, 2017, equations 1 and 2.
  """

  def fit(features: Array, labels: Array) -> Params:
    members = jax.nn.one_hot(labels, ways, dtype=features.dtype)
    return members.T @ features / members.sum(0)[:, None]

  def predict(means: Params, features: Array) -> Array:
    # |f - m|^2 by one matrix product; around the means' centre, where the
    # squares cancel least.
    centre = jnp.nanmean(means, axis=0)
    means, features = means - centre, features - centre
    own = jnp.square(features).sum(-1)[:, None]
    return 2 * features @ means.T - jnp.square(means).sum(-1) - own

  return Head(fit, predict)


def ridge(ways: int, strength: float = 1.0) -> Head:
  """Ridge regression with an offset that is not penalised.

  ::

    min_W,b  |F W + b - Y|^2 + strength |W|^2

  solved in the smaller of the spaces of features and of examples (Woodbury).
  Y are the labels as one-hot vectors; labels that are numbers, `[n, ways]`, are
  taken as they are.

  Args:
    ways: number of classes, or of numbers to be predicted.
    strength: of the penalty, positive.

  Raises:
    ValueError: if the strength is not positive.

  References:
    Bertinetto et al., `Meta-learning with differentiable closed-form solvers
    <https://arxiv.org/abs/1805.08136>`_, 2019, equations 6 and 7.
  """
  _check_strength(strength)
  return Head(
    lambda features, labels: ridge_fit(features, labels, ways, strength),
    ridge_predict,
  )


def ridge_fit(
  features: Array, labels: Array, ways: int, strength: Array | float
) -> Params:
  """Solves `ridge`, whose strength may here be learned."""
  # No solver is there for less.
  dtype = jnp.promote_types(features.dtype, jnp.float32)
  features = features.astype(dtype)
  targets = as_vectors(labels, ways, dtype)
  offset, centre = targets.mean(0), features.mean(0)
  x, y = features - centre, targets - offset
  n, d = x.shape
  if n < d:
    dual = jnp.linalg.solve(x @ x.T + strength * jnp.eye(n, dtype=x.dtype), y)
    weights = x.T @ dual
  else:
    gram = x.T @ x + strength * jnp.eye(d, dtype=x.dtype)
    weights = jnp.linalg.solve(gram, x.T @ y)
  return {"weights": weights, "offset": offset - centre @ weights}


def ridge_predict(params: Params, features: Array) -> Array:
  """Predicts by what `ridge_fit` has found."""
  return features @ params["weights"] + params["offset"]


def logistic(ways: int, strength: float = 1.0, num_steps: int = 50) -> Head:
  """Multinomial logistic regression, by L-BFGS.

  ::

    min_W,b  sum over examples of CE(F W + b, Y) + strength / 2 |W|^2

  (scikit-learn's with `C = 1 / strength`.)

  Args:
    ways: number of classes.
    strength: of the penalty, positive.
    num_steps: iterations; 50 suffice for features of length about 1.

  Raises:
    ValueError: if the strength is not positive.

  References:
    Tian et al., `Rethinking Few-Shot Image Classification: a Good Embedding Is
    All You Need? <https://arxiv.org/abs/2003.11539>`_, 2020, section 3.2.
  """
  _check_strength(strength)
  optimizer = optax.lbfgs()

  def fit(features: Array, labels: Array) -> Params:
    def loss(params: Params) -> Array:
      losses = optax.softmax_cross_entropy_with_integer_labels(
        predict(params, features), labels
      )
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
    return features @ params["weights"] + params["offset"]

  return Head(fit, predict)


def as_vectors(targets: Array, num_outputs: int, dtype: Any) -> Array:
  """Returns labels as vectors, `[n, num_outputs]`.

  Classes `[n]` become one-hot, numbers `[n, num_outputs]` stay what they are.
  """
  if jnp.issubdtype(targets.dtype, jnp.integer):
    return jax.nn.one_hot(targets, num_outputs, dtype=dtype)
  return targets.reshape(len(targets), -1).astype(dtype)


def _check_strength(strength: float) -> None:
  if not strength > 0:
    raise ValueError(f"strength={strength}: must be above 0.")
