"""Evolution strategies whose pairs carry their inner states through a loop.

See `evolution` for antithetic pairs, and `estimators` for windows and loops.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metajax.bilevel.estimators import Begin, Estimator, Window, renewed
from metajax.bilevel.evolution import both, check_noise, draw_noise, mean_slope
from metajax.bilevel.inner import Outer
from metajax.numerics import check_counts
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
  check_noise(sigma, pairs)

  def begin_pairs(rng: PRNGKey) -> Any:
    inner = jax.vmap(begin)(jax.random.split(rng, pairs))
    return jax.tree.map(lambda x: jnp.stack([x, x]), inner)

  def init(outer: Outer, rng: PRNGKey) -> Pairs:
    noise = jax.tree.map(
      lambda x: jnp.zeros((pairs, *jnp.shape(x)), jnp.result_type(x)), outer
    )
    if kind == "reused":  # A worker may start within a loop, see `descent`.
      rng, noise_key = jax.random.split(rng)
      noise = draw_noise(noise_key, outer, sigma, pairs)
    return Pairs(begin_pairs(rng), noise, jnp.int32(0))

  def estimate(state: Pairs, outer: Outer, rng: PRNGKey) -> tuple:
    noise_key, key, begin_key = jax.random.split(rng, 3)
    new = draw_noise(noise_key, outer, sigma, pairs)
    first = state.number == 0
    if kind == "reused":
      noise = factors = renewed(first, new, state.noise)
    else:
      noise = new
      total = jax.tree.map(jnp.add, state.noise, new)
      factors = renewed(first, new, total)
    at = jax.tree.map(lambda *x: jnp.stack(x), *both(outer, noise))
    keys = jax.random.split(key, pairs)
    of_pairs = jax.vmap(jax.vmap(window), (0, 0, None))
    inner, losses = of_pairs(state.inner, at, keys)
    ended = state.number + 1 >= horizon
    inner = renewed(ended, begin_pairs(begin_key), inner)
    number = jnp.where(ended, 0, state.number + 1)
    grads = mean_slope(factors, losses, sigma)
    return grads, losses.mean(), Pairs(inner, factors, number)

  return Estimator(init, estimate)
