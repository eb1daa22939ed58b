"""Random orders of any length, computed place by place: nothing is sorted."""

import jax
import jax.numpy as jnp

from metajax.types import Array, PRNGKey

ROUNDS = 32


def shuffled(rng: PRNGKey, size: Array, places: Array) -> Array:
  """Returns which of `size` examples stand at some places of a random order.

  The order is the swap-or-not shuffle: each of its rounds pairs i with
  `pivot - i` modulo the size, for a random pivot, and a random bit of each
  pair swaps it or not. The whole order is never made, so that a few places
  cost as much of a large set as of a small one, and the size may be traced.

  Args:
    rng: the key of the order.
    size: int32 scalar, at least 1.
    places: int32 `[n]`, 0 to size - 1.

  Returns:
    int32 `[n]`: different places have different examples.

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
