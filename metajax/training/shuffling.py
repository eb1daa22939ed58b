"""Random orders of traced length, computed place by place without sorting."""

import jax
import jax.numpy as jnp

from metajax.types import Array, PRNGKey

ROUNDS = 32


def shuffled(rng: PRNGKey, size: Array, places: Array) -> Array:
  """Returns the examples at some places of a random order of `size` examples.

  The order is the swap-or-not shuffle. Each of its rounds pairs i with
  `pivot - i` modulo the size, for a random pivot. A random bit of each pair
  decides whether the pair is swapped. The whole order is never computed. The
  cost of a place therefore does not depend on the size, and the size may be
  traced.

  Args:
    rng: the key of the order.
    size: int32 scalar, at least 1.
    places: int32 `[n]`, from 0 to size - 1.

  Returns:
    Indices of examples, int32 `[n]`. Different places have different examples.

  References:
    Hoang et al., `An Enciphering Scheme Based on a Card Shuffle
    <https://arxiv.org/abs/1208.1176>`_, 2012, figure 1.
  """
  size = jnp.asarray(size).astype(jnp.uint32)
  pivots, salts = jax.random.bits(rng, (2, ROUNDS), jnp.uint32)
  pivots %= size

  def swap_or_not(k: Array, x: Array) -> Array:
    pivot = pivots[k]
    partner = jnp.where(x <= pivot, pivot - x, pivot + (size - x))
    swaps = _hash(jnp.maximum(x, partner) ^ salts[k]) & 1
    return jnp.where(swaps == 1, partner, x)

  x = jax.lax.fori_loop(
    0, ROUNDS, swap_or_not, places.astype(jnp.uint32), unroll=8
  )
  return x.astype(jnp.int32)


def _hash(x: Array) -> Array:
  """Mixes the bits of uint32 numbers (Wellons' lowbias32)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
