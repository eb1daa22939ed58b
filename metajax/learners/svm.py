"""A support vector machine of several classes, as a differentiable head."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.learners.heads import (
  HIGHEST,
  Head,
  members_of,
  ridge_predict,
  seen,
)
from metajax.numerics import check_number
from metajax.types import Array, Params

NUM_STEPS = 25  # Of the interior point method; each divides the gap by 5.
NUM_REFINEMENTS = 2  # Of the linear equations after it.


def svm(ways: int | None = None, cost: ArrayLike = 0.1) -> Head:
  """The multi-class support vector machine of Crammer and Singer.

  ::

    min_W  |W|^2 / 2 + cost sum_i max_c (w_c . f_i + [c != y_i]) - w_{y_i} . f_i

  without offsets, by its dual, a quadratic programme in ways * n unknowns. A
  class that the support lacks takes no part, and has the logit `ABSENT`.

  Args:
    ways: number of classes; None: as many as there are examples.
    cost: of an error beside the norm, positive; 0.1 is MetaOptNet's.

  Returns:
    A head that can be differentiated to any order where no example enters or
    leaves a margin.

  Raises:
    ValueError: if the cost is known and not positive.

  References:
    Crammer and Singer, `On the Algorithmic Implementation of Multiclass
    Kernel-based Vector Machines
    <https://www.jmlr.org/papers/v2/crammer01a.html>`_, 2001, section 3.
    Lee et al., `Meta-Learning with Differentiable Convex Optimization
    <https://arxiv.org/abs/1904.03758>`_, 2019, equations 8 and 9.
  """
  check_number("cost", cost, above=0)

  def fit(features: Array, labels: Array, mask: Array | None = None) -> Params:
    return svm_fit(features, labels, ways, cost, mask)

  return Head(fit, ridge_predict)


def svm_fit(
  features: Array,
  labels: Array,
  ways: int | None,
  cost: ArrayLike,
  mask: Array | None = None,
) -> Params:
  """Solves `svm`, for its `predict`, which is that of `ridge`."""
  features = seen(features, mask)
  members = members_of(labels, mask, ways, features.dtype)
  offset = jnp.zeros(members.shape[1], features.dtype)
  if not len(features):  # No example, and so no dual.
    weights = jnp.zeros((features.shape[1], len(offset)), features.dtype)
    return {"weights": weights, "offset": offset, "present": offset > 0}
  gram = jnp.matmul(features, features.T, precision=HIGHEST) * jnp.asarray(cost)
  present = members.any(0)
  # Of padding alone the dual has no unknowns. It weighs features of zeros.
  asked = present | ~present.any()
  duals = cost * (members - _shares(gram, members, asked))
  weights = jnp.matmul(features.T, duals, precision=HIGHEST)
  return {"weights": weights, "offset": offset, "present": present}


def _shares(gram: Array, members: Array, present: Array) -> Array:
  """Solves the dual.

  With the classes Y as one-hot rows and K = cost F F'::

    min_S  tr (Y - S)' K (Y - S) / 2 + tr Y' S,   S >= 0,  rows of S sum to 1

  An interior point method finds which of S are not 0. They are the solution of
  linear equations, whose derivatives are those of S.
  """
  fixed = jax.lax.stop_gradient(gram)
  shares, slack, unit = _interior(fixed, members, present)
  free = (shares > slack / unit) | (shares >= shares.max(1, keepdims=True))
  free = free & present
  # K may leave directions open. They stay as they are, and all others come to
  # the solution by repetition.
  ridge = jnp.finfo(gram.dtype).eps ** 0.5 * (1 + jnp.trace(fixed) / len(gram))
  solve = _newton(gram, free.astype(gram.dtype) / ridge)
  near = shares
  shares = jnp.where(free, shares, 0)
  for _ in range(NUM_REFINEMENTS):
    slopes = _slopes(gram, members, shares)
    # In a row they are equal in the end; small numbers are rounded less.
    slopes = slopes - slopes.mean(1, where=free, keepdims=True)
    shares = shares + solve(-slopes, 1 - shares.sum(1))
  # Of examples that outnumber their dimensions, rounding may choose equations
  # that contradict each other.
  return jnp.where(jnp.abs(shares).max() < 2, shares, near)


def _slopes(gram: Array, members: Array, shares: Array) -> Array:
  """The gradient of what is minimised."""
  return members - jnp.matmul(gram, members - shares, precision=HIGHEST)


def _interior(
  gram: Array, members: Array, present: Array
) -> tuple[Array, Array, Array]:
  """Returns S, its multipliers (the slack) and their size, all nearly."""
  num_present = present.astype(gram.dtype).sum()
  start = jnp.broadcast_to(present.astype(gram.dtype), members.shape)
  start = start / num_present
  slopes = _slopes(gram, members, start)
  unit = jnp.abs(slopes).max() + 1
  least = jnp.finfo(gram.dtype).eps * unit
  lowest = slopes.min(1, where=present, initial=jnp.inf, keepdims=True)
  count = len(members) * num_present

  def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
    shares, slack = state
    gap = jnp.where(present, shares * slack, 0).sum() / count
    target = jnp.maximum(0.1 * gap, least)
    divisor = jnp.where(present, shares, 1)
    push = jnp.where(present, target / divisor - slack, 0)
    weights = jnp.where(present, shares / slack, 0)
    moves = _newton(gram, weights)(push, 1 - shares.sum(1))
    slack_moves = jnp.where(present, push - slack / divisor * moves, 0)
    # As far as all stays positive.
    room = [
      jnp.where(move < 0, -x / move, jnp.inf).min()
      for x, move in ((divisor, moves), (slack, slack_moves))
    ]
    length = jnp.minimum(1, 0.95 * jnp.minimum(*room))
    length = jnp.where(gap > 2 * least, length, 0)  # Rounding is all after it.
    return shares + length * moves, slack + length * slack_moves

  slack = slopes - lowest + unit
  shares, slack = jax.lax.fori_loop(0, NUM_STEPS, step, (start, slack))
  return shares, slack, unit


def _newton(gram: Array, weights: Array) -> Callable[[Array, Array], Array]:
  """Returns `(push, short) -> moves`, which solves for moves D and levels.

  ::

    K D_c + D_c / weights_c = push_c + level  for each class c
    sum_c D_c = short

  where D is 0 if the weight is.
  """
  root = jnp.sqrt(weights).T  # [ways, n]
  scaled = root[:, :, None] * gram * root[:, None, :]
  inverse = jnp.linalg.inv(jnp.eye(len(gram), dtype=gram.dtype) + scaled)
  inverse = root[:, :, None] * inverse * root[:, None, :]
  total = inverse.sum(0)
  product = functools.partial(jnp.einsum, precision=HIGHEST)

  def solve(push: Array, short: Array) -> Array:
    first = product("cij,jc->ic", inverse, push)
    level = jnp.linalg.solve(total, short - first.sum(1))
    return first + product("cij,j->ic", inverse, level)

  return solve
