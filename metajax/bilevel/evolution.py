"""Gradients of long inner loops by evolution strategies, without a derivative.

All estimates are antithetic: pairs of `outer + e` and `outer - e` run with the
same key, with e of N(0, sigma^2). They estimate the gradient of the objective
smoothed by this noise. See `estimators` for windows, loops and the objective.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

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
from metajax.bilevel.solvers import Outer
from metajax.numerics import check_counts, check_number
from metajax.types import Array, PRNGKey


class Pairs(NamedTuple):
  """Where the pairs of a persistent estimator stand.

  Attributes:
    inner: the inner states of all pairs, `[2, pairs, ...]`.
    noise: a tree `[pairs, ...]` like `outer`: the sum of the noise of this loop
      (PES), or the noise of this loop (NRES).
    number: int32, the number of the window within the loop.
  """

  inner: Any
  noise: Outer
  number: Array


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
  _check(sigma, pairs)

  def gradient(outer: Outer, *rest_and_rng: Any) -> tuple[Outer, Array]:
    *rest, rng = rest_and_rng
    noise_key, key = jax.random.split(rng)
    noise = _noise(noise_key, outer, sigma, pairs)
    keys = jax.random.split(key, pairs)
    of_pairs = jax.vmap(lambda at, key: loss_fn(at, *rest, key))
    losses = jnp.stack([of_pairs(at, keys) for at in _both(outer, noise)])
    return _slopes(noise, losses, sigma), losses.mean()

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


def persistent_evolution(
  begin: Begin, window: Window, horizon: int, *, sigma: float, pairs: int
) -> Estimator:
  """Builds persistent evolution strategies (PES).

  ::

    g_t = mean over pairs of  x_t (L_t(+) - L_t(-)) / (2 sigma^2)
    x_t = e_1 + ... + e_t,  a new noise e_t in each window

  where the two inner states of a pair are carried through the loop. The mean
  over the windows of a loop is unbiased for the smoothed objective, in which
  each window has a noise of its own. Its variance depends on how the gradients
  of the windows are correlated.

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
    2021, section 4, algorithm 2.
  """
  return _carried(begin, window, horizon, sigma, pairs, "persistent")


def noise_reuse_evolution(
  begin: Begin, window: Window, horizon: int, *, sigma: float, pairs: int
) -> Estimator:
  """Builds noise-reuse evolution strategies (NRES).

  ::

    g_t = mean over pairs of  e (L_t(+) - L_t(-)) / (2 sigma^2)

  where each pair keeps its noise e for a whole loop. The mean over the windows
  of a loop is `evolution` with this noise, but has an estimate ready after each
  window. The paper gives conditions under which one estimate has less variance
  than one of PES.

  Args:
    begin: see `evolution`.
    window: see `evolution`.
    horizon: see `evolution`.
    sigma: see `evolution`.
    pairs: see `evolution`.

  Raises:
    ValueError: if a number is not positive.

  References:
    Li et al., `Variance-Reduced Gradient Estimation via Noise-Reuse in Online
    Evolution Strategies <https://arxiv.org/abs/2304.12180>`_, 2023, section 3.
  """
  return _carried(begin, window, horizon, sigma, pairs, "reused")


def _carried(
  begin: Begin,
  window: Window,
  horizon: int,
  sigma: float,
  pairs: int,
  kind: Literal["persistent", "reused"],
) -> Estimator:
  """Estimators whose pairs carry their inner states through a loop."""
  check_counts(horizon=horizon)
  _check(sigma, pairs)

  def begin_pairs(rng: PRNGKey) -> Any:
    inner = jax.vmap(begin)(jax.random.split(rng, pairs))
    return jax.tree.map(lambda x: jnp.stack([x, x]), inner)

  def init(outer: Outer, rng: PRNGKey) -> Pairs:
    noise = jax.tree.map(
      lambda x: jnp.zeros((pairs, *jnp.shape(x)), jnp.result_type(x)), outer
    )
    return Pairs(begin_pairs(rng), noise, jnp.int32(0))

  def estimate(state: Pairs, outer: Outer, rng: PRNGKey) -> tuple:
    noise_key, key, begin_key = jax.random.split(rng, 3)
    new = _noise(noise_key, outer, sigma, pairs)
    first = state.number == 0
    if kind == "reused":
      noise = factors = renewed(first, new, state.noise)
    else:
      noise = new
      total = jax.tree.map(jnp.add, state.noise, new)
      factors = renewed(first, new, total)
    at = jax.tree.map(lambda *x: jnp.stack(x), *_both(outer, noise))
    keys = jax.random.split(key, pairs)
    of_pairs = jax.vmap(jax.vmap(window), (0, 0, None))
    inner, losses = of_pairs(state.inner, at, keys)
    ended = state.number + 1 >= horizon
    inner = renewed(ended, begin_pairs(begin_key), inner)
    number = jnp.where(ended, 0, state.number + 1)
    grads = _slopes(factors, losses, sigma)
    return grads, losses.mean(), Pairs(inner, factors, number)

  return Estimator(init, estimate)


def _noise(rng: PRNGKey, outer: Outer, sigma: float, pairs: int) -> Outer:
  leaves, tree = jax.tree.flatten(outer)
  keys = jax.random.split(rng, len(leaves))
  noise = [
    sigma
    * jax.random.normal(key, (pairs, *jnp.shape(x)), jnp.result_type(x, float))
    for key, x in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, noise)


def _both(outer: Outer, noise: Outer) -> tuple[Outer, Outer]:
  """The outer parameters of both halves of all pairs, `[pairs, ...]`."""
  return (
    jax.tree.map(jnp.add, outer, noise),
    jax.tree.map(jnp.subtract, outer, noise),
  )


def _slopes(factors: Outer, losses: Array, sigma: float) -> Outer:
  """Averages factors `[pairs, ...]` times the slopes of losses `[2, pairs]`."""
  if losses.ndim != 2:
    raise ValueError(
      f"loss: has the shape {losses.shape[2:]}; must be a scalar."
    )
  slopes = (losses[0] - losses[1]) / (2 * sigma**2)
  return jax.tree.map(
    lambda x: jnp.tensordot(slopes, x, 1) / len(slopes), factors
  )


def _check(sigma: float, pairs: int) -> None:
  check_number("sigma", sigma, above=0)
  check_counts(pairs=pairs)
