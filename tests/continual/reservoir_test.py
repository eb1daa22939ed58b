"""What is kept and what is drawn, against the chances that they must have."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metajax.continual import Reservoir, add, draw, reservoir

# Chance alone would fail a test this seldom; keys are fixed, so it never does
# without a change.
SIGNIFICANCE = 1e-3
KEYS = jax.random.split(jax.random.key(0), 6000)


def _filled(number, capacity, rng):
  """A memory that has seen 1, 2, ..., `number`."""

  def one(memory, example_and_key):
    return add(memory, *example_and_key), None

  examples = jnp.arange(1, number + 1)
  memory, _ = jax.lax.scan(
    one,
    reservoir(examples[0], capacity),
    (examples, jax.random.split(rng, number)),
  )
  return memory


@functools.partial(jax.jit, static_argnums=(0, 1))
def _filled_often(number, capacity):
  return jax.vmap(lambda rng: _filled(number, capacity, rng))(KEYS)


def _assert_equally_likely(counts):
  counts = np.asarray(counts)
  # Pearson's approximation is good from about 5 in each cell.
  assert counts.sum() / counts.size > 20
  assert stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_all_are_kept_in_order_while_there_is_room():
  """Examples are trees; each leaf keeps its type and its shape."""
  rng = np.random.default_rng(0)
  examples = {
    "image": np.float32(rng.normal(size=(4, 2, 3))),
    "label": np.arange(7, 11, dtype=np.int32),
  }

  def example(i):
    return jax.tree.map(lambda leaf: leaf[i], examples)

  memory = reservoir(example(0), 4)
  assert memory.seen == 0
  add_compiled = jax.jit(add)
  for i in range(4):
    memory = add_compiled(memory, example(i), KEYS[i])
    assert memory.seen == i + 1
    for name, leaf in examples.items():
      found = memory.items[name]
      assert (found.dtype, found.shape) == (leaf.dtype, leaf.shape)
      np.testing.assert_array_equal(found[: i + 1], leaf[: i + 1])


def test_all_subsets_of_what_was_seen_are_equally_likely_to_be_kept():
  number, capacity = 6, 2
  memory = _filled_often(number, capacity)
  assert (memory.seen == number).all()
  kept = list(map(tuple, np.sort(memory.items, axis=1).tolist()))
  subsets = itertools.combinations(range(1, number + 1), capacity)
  counts = [kept.count(subset) for subset in subsets]
  # No other sets: none twice, and nothing that was never seen.
  assert sum(counts) == len(KEYS)
  _assert_equally_likely(counts)


def test_each_of_many_seen_is_kept_with_chance_capacity_by_number():
  number, capacity = 40, 5
  kept = np.asarray(_filled_often(number, capacity).items)
  counts = np.bincount(kept.ravel(), minlength=number + 1)
  assert counts[0] == 0
  share = capacity / number
  # Pearson's statistic is too large where a trial has several of the cells
  # without replacement: the covariance of the indicators is
  # p (1 - p) n / (n - 1) (I - 1/n), whose pseudo-inverse gives this one.
  expected = len(KEYS) * share
  statistic = np.square(counts[1:] - expected).sum() / expected
  statistic *= (number - 1) / number / (1 - share)
  assert stats.chi2.sf(statistic, number - 1) > SIGNIFICANCE


@pytest.mark.parametrize("seen, capacity", [(3, 5), (9, 3)])
def test_draws_are_independent_and_uniform_over_the_kept(seen, capacity):
  """Places that are not yet taken are never drawn.

  An item is an example's number and a vector of its opposite: they stay
  together.
  """
  kept = min(seen, capacity)
  numbers = np.zeros(capacity, np.int32)
  numbers[:kept] = 11 + np.arange(kept)
  vectors = -np.stack([numbers] * 2, axis=1)
  memory = Reservoir((jnp.asarray(numbers), jnp.asarray(vectors)), seen)
  draws = jax.jit(jax.vmap(lambda rng: draw(memory, 2, rng)))(KEYS)
  pairs, vectors = map(np.asarray, draws)
  assert pairs.shape == (len(KEYS), 2)
  np.testing.assert_array_equal(vectors, -np.stack([pairs] * 2, axis=2))
  pairs = list(map(tuple, pairs.tolist()))
  counts = [
    pairs.count(pair)
    for pair in itertools.product(range(11, 11 + kept), repeat=2)
  ]
  assert sum(counts) == len(KEYS)
  _assert_equally_likely(counts)


def test_an_empty_memory_gives_zeros():
  found = draw(reservoir(jnp.ones(2), 3), 4, KEYS[0])
  np.testing.assert_array_equal(found, np.zeros((4, 2)))


@pytest.mark.parametrize("capacity", [0, -2])
def test_a_memory_of_no_places_is_refused(capacity):
  message = f"^capacity={capacity}: must be 1 or more"
  with pytest.raises(ValueError, match=message):
    reservoir(jnp.zeros(2), capacity)


@pytest.mark.parametrize(
  "example, message",
  [
    (jnp.ones(1), r"float32 \(1,\), must be float32 \(2,\)"),
    (jnp.float32(1), r"float32 \(\), must be float32 \(2,\)"),
    (jnp.ones((2, 2)), r"float32 \(2, 2\), must be float32 \(2,\)"),
    (jnp.ones(2, jnp.complex64), r"complex64 \(2,\), must be float32"),
  ],
)
def test_an_example_of_another_form_is_not_broadcast(example, message):
  memory = reservoir({"x": jnp.zeros(2)}, 3)
  with pytest.raises(ValueError, match=r"^example\['x'\] is " + message):
    add(memory, {"x": example}, KEYS[0])


def test_integers_of_a_memory_are_not_cut_from_floats():
  memory = reservoir(jnp.zeros(2, int), 3)
  with pytest.raises(ValueError, match="^example is float32"):
    add(memory, jnp.array([1.7, 2.2]), KEYS[0])
  kept = add(reservoir(jnp.zeros(2), 3), jnp.array([1, 2]), KEYS[0])
  np.testing.assert_array_equal(kept.items[0], [1.0, 2.0])
