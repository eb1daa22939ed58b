"""Random orders: each example once, and every order as likely as another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.training.shuffling import shuffled

RNG = jax.random.key(0)


@jax.jit
def _order(rng, size, places):
  return shuffled(rng, size, places)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4096])
def test_every_example_has_one_place(size):
  """Of sizes that are arguments of one program, in which nothing is sorted."""
  places = jnp.arange(4096)
  order = np.asarray(_order(RNG, size, places))[:size]
  np.testing.assert_array_equal(np.sort(order), np.arange(size))
  assert "sort" not in str(jax.make_jaxpr(shuffled)(RNG, 5, places))
  if size == 4096:
    found = _order(RNG, size, places[::-1])
    np.testing.assert_array_equal(found, order[::-1])
    other = _order(jax.random.key(1), size, places)
    assert (order == other).mean() < 0.01


@pytest.mark.parametrize("size", [3, 4])
def test_orders_are_equally_likely(size):
  """Pearson's test over all of them; its statistic has a known spread."""
  keys = jax.random.split(RNG, 48_000)
  orders = jax.vmap(_order, (0, None, None))(keys, size, jnp.arange(size))
  counts = np.unique(np.asarray(orders), axis=0, return_counts=True)[1]
  number = {3: 6, 4: 24}[size]
  assert len(counts) == number
  mean = len(keys) / number
  statistic = ((counts - mean) ** 2 / mean).sum()
  # Mean and variance of chi squared are n - 1 and 2 (n - 1).
  assert abs(statistic - (number - 1)) < 4 * np.sqrt(2 * (number - 1))


def test_pairs_of_places_are_independent():
  """Of neighbours, whose examples a poor shuffle would keep together."""
  size, keys = 10, jax.random.split(RNG, 45_000)
  order = jax.vmap(_order, (0, None, None))
  first, second = np.asarray(order(keys, size, jnp.array([4, 5]))).T
  counts = np.bincount(first * size + second, minlength=size**2)
  assert (counts.reshape(size, size).diagonal() == 0).all()
  pairs = counts[counts > 0]
  mean = len(keys) / 90
  statistic = ((pairs - mean) ** 2 / mean).sum()
  assert abs(statistic - 89) < 4 * np.sqrt(2 * 89)
