"""Gradients of long inner loops by evolution strategies, without a derivative.

All estimates are antithetic: pairs of `outer + e` and `outer - e` run with the
same key, with e of N(0, sigma^2). They estimate the gradient of the objective
smoothed by this noise. See `estimators` for windows, loops and the objective.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.bilevel.estimators import (
  Begin,
  Estimator,
  Place,
  Window,
  renewed,
  whole_loop,
)
from metajax.bilevel.inner import Outer
from metajax.numerics import check_counts, check_number
from metajax.types import Array, PRNGKey


def antithetic(
  loss_fn: Callable[..., Array], sigma: float, pairs: int
) -> Callable[..., tuple[Outer, Array]]:
  """Builds the antithetic estimate of the gradient of any function.

  ::

    g = mean over pairs of  e (L(outer + e) - L(outer - e)) / (2 sigma^2)

  Args:
    loss_fn: L, `(outer, *rest, rng) -> scalar`. It need not be differentiable.
    sigma: the standard deviation of the noise, positive.
    pairs: the number of pairs.

  Returns:
    `(outer, *rest, rng) -> (grads, loss)`, with the mean loss of all pairs.

  Raises:
    ValueError: if `sigma` or `pairs` is not positive.

  References:
    Salimans et al., `Evolution Strategies as a Scalable Alternative to
    Reinforcement Learning <https://arxiv.org/abs/1703.03864>`_, 2017.
  """
  check_noise(sigma, pairs)

  def gradient(outer: Outer, *rest_and_rng: Any) -> tuple[Outer, Array]:
    *rest, rng = rest_and_rng
    noise_key, key = jax.random.split(rng)
    noise = draw_noise(noise_key, outer, sigma, pairs)
    keys = jax.random.split(key, pairs)
    of_pairs = jax.vmap(lambda at, key: loss_fn(at, *rest, key))
    losses = jnp.stack([of_pairs(at, keys) for at in both(outer, noise)])
    return mean_slope(noise, losses, sigma), losses.mean()

  return gradient


def evolution(
  begin: Begin, window: Window, horizon: int, *, sigma: float, pairs: int
) -> Estimator:
  """Builds evolution strategies (ES) on whole loops.

  One call is one whole loop. It has no state, and is unbiased for the smoothed
  objective.

  Args:
    begin: `(rng) -> inner`, the beginning of a loop.
    window: `(inner, outer, rng) -> (inner, loss)`. It need not be
      differentiable.
    horizon: the number of windows in a loop.
    sigma: the standard deviation of the noise, positive.
    pairs: the number of antithetic pairs.

  Raises:
    ValueError: if a number is not positive.
  """
  check_counts(horizon=horizon)
  gradient = antithetic(whole_loop(begin, window, horizon), sigma, pairs)
  return Estimator(
    lambda outer, rng: (),
    lambda state, outer, rng: (*gradient(outer, rng), state),
  )


def truncated_evolution(
  begin: Begin, window: Window, horizon: int, *, sigma: float, pairs: int
) -> Estimator:
  """Builds truncated ES: evolution strategies within each window.

  All pairs start a window at the inner state that `outer` itself has reached.
  The estimate is biased as that of `truncated_backpropagation`.

  Args:
    begin: see `evolution`.
    window: see `evolution`.
    horizon: see `evolution`.
    sigma: see `evolution`.
    pairs: see `evolution`.

  Raises:
    ValueError: if a number is not positive.

  References:
    Vicol et al., `Unbiased Gradient Estimation in Unrolled Computation Graphs
    with Persistent Evolution Strategies <https://arxiv.org/abs/2112.13835>`_,
    2021, algorithm 1.
  """
  check_counts(horizon=horizon)
  gradient = antithetic(
    lambda outer, inner, rng: window(inner, outer, rng)[1], sigma, pairs
  )

  def init(outer: Outer, rng: PRNGKey) -> Place:
    del outer
    return Place(begin(rng), jnp.int32(0))

  def estimate(state: Place, outer: Outer, rng: PRNGKey) -> tuple:
    inner, number = state
    key, own_key, begin_key = jax.random.split(rng, 3)
    grads, _ = gradient(outer, inner, key)
    inner, loss = window(inner, outer, own_key)
    ended = number + 1 >= horizon
    inner = renewed(ended, begin(begin_key), inner)
    return grads, loss, Place(inner, jnp.where(ended, 0, number + 1))

  return Estimator(init, estimate)


def draw_noise(rng: PRNGKey, outer: Outer, sigma: float, pairs: int) -> Outer:
  """Draws noise of N(0, sigma^2), a tree `[pairs, ...]` like `outer`."""
  leaves, tree = jax.tree.flatten(outer)
  keys = jax.random.split(rng, len(leaves))
  noise = [
    sigma
    * jax.random.normal(key, (pairs, *jnp.shape(x)), jnp.result_type(x, float))
    for key, x in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, noise)


def both(outer: Outer, noise: Outer) -> tuple[Outer, Outer]:
  """The outer parameters of both halves of all pairs, `[pairs, ...]`."""
  return (
    jax.tree.map(jnp.add, outer, noise),
    jax.tree.map(jnp.subtract, outer, noise),
  )


def mean_slope(factors: Outer, losses: Array, sigma: float) -> Outer:
  """Averages factors `[pairs, ...]` times the slopes of losses `[2, pairs]`."""
  if losses.ndim != 2:
    raise ValueError(
      f"loss: has the shape {losses.shape[2:]}; must be a scalar."
    )
  scaled = (losses[0] - losses[1]) / (2 * sigma**2)
  return jax.tree.map(
    lambda x: jnp.tensordot(scaled, x, 1) / len(scaled), factors
  )


def check_noise(sigma: float, pairs: int) -> None:
  """Raises a `ValueError` if `sigma` or `pairs` is not positive."""
  check_number("sigma", sigma, above=0)
  check_counts(pairs=pairs)
