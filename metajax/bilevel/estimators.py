"""Gradients of long inner loops, one window at a time, by backpropagation.

An inner loop is cut into windows. A problem is a pair of functions: `begin(rng)
-> inner` and `window(inner, outer, rng) -> (inner, loss)`. The objective is the
mean of the losses of `horizon` windows. After these the loop begins anew.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.bilevel.inner import (
  InnerLoss,
  InnerOptimizer,
  InnerState,
  Outer,
  check_real,
  evaluated,
  run,
)
from metajax.numerics import check_counts
from metajax.types import Array, Params, PRNGKey

Begin = Callable[[PRNGKey], Any]
Window = Callable[[Any, Outer, PRNGKey], tuple[Any, Array]]


class Estimator(NamedTuple):
  """An estimator of the gradient of a long inner loop.

  Attributes:
    init: `(outer, rng) -> state`.
    estimate: `(state, outer, rng) -> (grads, loss, state)`. The mean of `grads`
      over the windows of a loop estimates the gradient of the mean loss. `loss`
      is the mean loss of this call.
  """

  init: Callable[[Outer, PRNGKey], Any]
  estimate: Callable[[Any, Outer, PRNGKey], tuple[Outer, Array, Any]]


class Place(NamedTuple):
  """Where a loop stands: its inner state, and the number of its window."""

  inner: Any
  number: Array


def of_steps(step: Window, length: int) -> Window:
  """Makes a window of single steps; its loss is the mean of theirs.

  Args:
    step: `(inner, outer, rng) -> (inner, loss)`, one step.
    length: the number of steps in a window, at least 1.

  Raises:
    ValueError: if `length` is not positive.
  """
  check_counts(length=length)

  def window(inner: Any, outer: Outer, rng: PRNGKey) -> tuple[Any, Array]:
    inner, losses = jax.lax.scan(
      lambda inner, key: step(inner, outer, key),
      inner,
      jax.random.split(rng, length),
    )
    return inner, losses.mean()

  return window


def of_training(
  inner_loss: InnerLoss,
  optimizer: InnerOptimizer,
  num_steps: int,
  outer_loss: Callable[[Params, Outer], Array],
) -> Window:
  """Makes a window of inner training; its loss is the outer loss at the end.

  Args:
    inner_loss: see `unrolled`.
    optimizer: see `unrolled`.
    num_steps: the number of inner steps in a window.
    outer_loss: `(params, outer) -> scalar`.

  Returns:
    A window whose inner state is an `InnerState`. Begin with that of
    `unrolled(...).init`.
  """

  def window(
    inner: InnerState, outer: Outer, rng: PRNGKey
  ) -> tuple[InnerState, Array]:
    del rng
    inner = run(inner_loss, optimizer, num_steps, inner, outer)
    return inner, outer_loss(evaluated(inner), outer)

  return window


def backpropagation(begin: Begin, window: Window, horizon: int) -> Estimator:
  """Builds the exact gradient, through all windows of a loop.

  One call is one whole loop. It has no state. Memory grows with the horizon.

  Args:
    begin: `(rng) -> inner`, the beginning of a loop.
    window: `(inner, outer, rng) -> (inner, loss)`.
    horizon: the number of windows in a loop.

  Raises:
    ValueError: if `horizon` is not positive; in use, if `outer` is not real.
  """
  check_counts(horizon=horizon)

  def estimate(state: tuple, outer: Outer, rng: PRNGKey) -> tuple:
    check_real("outer", outer)
    loss, grads = jax.value_and_grad(whole_loop(begin, window, horizon))(
      outer, rng
    )
    return grads, loss, state

  return Estimator(lambda outer, rng: (), estimate)


def truncated_backpropagation(
  begin: Begin, window: Window, horizon: int
) -> Estimator:
  """Builds truncated backpropagation: the gradient within each window.

  The inner state at the start of a window is a constant. The estimate is
  therefore biased: it leaves out the effect of earlier windows.

  Args:
    begin: see `backpropagation`.
    window: see `backpropagation`.
    horizon: see `backpropagation`.

  Raises:
    ValueError: if `horizon` is not positive; in use, if `outer` is not real.
  """
  check_counts(horizon=horizon)

  def init(outer: Outer, rng: PRNGKey) -> Place:
    del outer
    return Place(begin(rng), jnp.int32(0))

  def estimate(place: Place, outer: Outer, rng: PRNGKey) -> tuple:
    check_real("outer", outer)
    key, begin_key = jax.random.split(rng)

    def loss_of(outer: Outer) -> tuple[Array, Any]:
      inner, loss = window(jax.lax.stop_gradient(place.inner), outer, key)
      return loss, inner

    (loss, inner), grads = jax.value_and_grad(loss_of, has_aux=True)(outer)
    ended = place.number + 1 >= horizon
    inner = renewed(ended, begin(begin_key), inner)
    return grads, loss, Place(inner, jnp.where(ended, 0, place.number + 1))

  return Estimator(init, estimate)


def whole_loop(
  begin: Begin, window: Window, horizon: int
) -> Callable[[Outer, PRNGKey], Array]:
  """Returns `(outer, rng) -> scalar`, the mean loss of a whole loop."""

  def loss(outer: Outer, rng: PRNGKey) -> Array:
    begin_key, key = jax.random.split(rng)
    _, losses = jax.lax.scan(
      lambda inner, key: window(inner, outer, key),
      begin(begin_key),
      jax.random.split(key, horizon),
    )
    return losses.mean()

  return loss


def renewed(ended: Array, new: Any, old: Any) -> Any:
  """Chooses the new tree if the loop has ended."""
  return jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, old)
