"""What is kept of a task, against lists; and what is drawn of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.off_policy import Episodes, Transition
from metajax.off_policy.rings import (
  draw_batch,
  draw_context,
  empty_rings,
  store,
)

TASKS, EPISODES, HORIZON, CAPACITY = 3, 2, 4, 10


def _trials(first, lengths):
  """Trials [n, K, T] whose rewards are consecutive numbers."""
  lengths = np.asarray(lengths)
  shape = *lengths.shape, HORIZON
  number = first + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  mask = np.arange(HORIZON) < lengths[..., None]
  row = np.repeat(number[..., None], 2, -1)
  steps = Transition(row, row[..., :1], number, row + 1, number % 3 == 0)
  return Episodes(jax.tree.map(jnp.asarray, steps), jnp.asarray(mask))


@pytest.fixture(scope="module")
def kept():
  """Rings after four trials of tasks 0 and 2, and lists that know the same."""
  empty = jax.tree.map(jnp.zeros_like, _trials(0, np.zeros((TASKS, EPISODES))))
  rings, lists = empty_rings(CAPACITY, empty), {0: [], 1: [], 2: []}
  draw = np.random.default_rng(0)
  for turn in range(4):
    lengths = draw.integers(1, HORIZON + 1, (2, EPISODES))
    trials = _trials(100 * turn, lengths)
    places = [2, 0]
    rings = jax.jit(store)(rings, jnp.array(places), trials)
    for i, place in enumerate(places):
      real = np.asarray(trials.mask[i])
      lists[place] += np.asarray(trials.steps.reward[i])[real].tolist()
  return rings, lists, trials


def test_ring_has_the_last_real_transitions(kept):
  rings, lists, _ = kept
  for place, known in lists.items():
    assert rings.written[place] == len(known)
    found = np.asarray(rings.steps.reward[place])
    if not known:
      assert not found.any()
      continue
    assert len(known) > CAPACITY
    assert sorted(found) == sorted(known[-CAPACITY:])
    for name in ("observation", "next_observation"):  # Their rows stay whole.
      row = np.asarray(getattr(rings.steps, name)[place])[:, 1]
      np.testing.assert_array_equal(row, found + (name != "observation"))
    np.testing.assert_array_equal(rings.steps.ended[place], found % 3 == 0)


def test_batch_is_drawn_from_all_that_is_kept(kept):
  rings, lists, trials = kept
  found = draw_batch(rings, 2, jax.random.key(0), 4000).reward
  values, counts = np.unique(found, return_counts=True)
  assert set(values) == set(lists[2][-CAPACITY:])
  assert np.abs(counts - 4000 / CAPACITY).max() < 4 * np.sqrt(4000 / CAPACITY)
  # A ring that is not full has nothing else.
  few = store(rings, jnp.array([1]), jax.tree.map(lambda x: x[:1], trials))
  found = draw_batch(few, 1, jax.random.key(0), 500).reward
  real = np.asarray(trials.steps.reward[0])[np.asarray(trials.mask[0])]
  assert len(real) < CAPACITY and set(np.unique(found)) == set(real.tolist())


@pytest.mark.parametrize("size", [None, 6])
def test_context_is_of_the_first_episodes_of_the_newest_trial(kept, size):
  rings, _, trials = kept
  keys = jax.random.split(jax.random.key(1), 400)
  steps, mask = jax.vmap(lambda key: draw_context(rings, 0, key, size))(keys)
  rewards, mask = np.asarray(steps.reward), np.asarray(mask)
  new, real = (np.asarray(x[1]) for x in (trials.steps.reward, trials.mask))
  first, both = new[0][real[0]], new[real]
  alone = 0
  for found, use in zip(rewards, mask, strict=True):
    drawn = set(found[use].tolist())
    assert drawn <= set(both.tolist())
    if size is None:
      assert drawn in (set(first.tolist()), set(both.tolist()))
    alone += drawn <= set(first.tolist())
  # Half of them, and a few that drew the second episode by chance alone.
  assert 150 < alone < (250 if size is None else 300)
