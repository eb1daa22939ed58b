"""Tasks of several families in one."""

import jax
import numpy as np
import pytest

from metajax.tasks import few_shot_episodes, mixture, sinusoid

# A number says its family: 100, 200 or 300, and its place.
NUMBERS = [100 * i + np.arange(12.0).reshape(3, 4) for i in (1, 2, 3)]
PLAIN = [few_shot_episodes(x, 2, 1, 1) for x in NUMBERS]


MIXED = mixture(PLAIN, [1, 2, 5])


@jax.jit
def _draw(family, keys):
  return jax.vmap(family)(keys)


def _drawn(family, count):
  keys = jax.random.split(jax.random.key(0), count)
  return jax.tree.map(np.asarray, _draw(family, keys))


@pytest.mark.slow
def test_families_are_drawn_as_their_weights_say():
  episodes = _drawn(MIXED, 4000)
  of = episodes.support.inputs // 100
  np.testing.assert_array_equal(of, np.repeat(of[:, :1], 2, axis=1))
  np.testing.assert_array_equal(episodes.query.inputs // 100, of)
  counts = np.bincount(of[:, 0].astype(int))[1:]
  chances = np.array([1, 2, 5]) / 8
  sigma = np.sqrt(4000 * chances * (1 - chances))
  assert np.all(np.abs(counts - 4000 * chances) < 4.5 * sigma)


@pytest.mark.slow
def test_a_task_is_one_of_its_family():
  """By the key that the mixture hands on: the second of two."""
  keys = jax.random.split(jax.random.key(0), 4000)
  own_keys = jax.vmap(jax.random.split)(keys)[:, 1]
  found = _drawn(MIXED, 4000)
  for number, family in enumerate(PLAIN, 1):
    mine = found.support.inputs[:, 0] // 100 == number
    expected = _draw(family, own_keys)
    jax.tree.map(
      lambda a, b, mine=mine: np.testing.assert_array_equal(a[mine], b[mine]),
      found,
      expected,
    )


def test_arrays_are_arguments_and_no_constants():
  """The same program draws from other arrays."""
  before = _draw._cache_size()
  plain = _drawn(MIXED, 4000)
  moved = jax.tree.map(lambda x: x + 1000 if x.size == 12 else x, MIXED)
  np.testing.assert_array_equal(
    _drawn(moved, 4000).query.inputs, plain.query.inputs + 1000
  )
  assert _draw._cache_size() <= before + 1


@pytest.mark.slow
def test_where_some_are_masked_the_others_get_a_mask_of_ones():
  masked = few_shot_episodes(NUMBERS[0], 2, 1, 1, small_classes=True)
  episodes = _drawn(mixture([masked, PLAIN[1]]), 50)
  assert set(episodes.support.inputs[:, 0] // 100) == {1, 2}
  assert episodes.support.mask.all() and episodes.query.mask.dtype == bool


@pytest.mark.parametrize(
  "families, weights, message",
  [
    (PLAIN, [1, 2], "weights=.* each of the 3 families"),
    (PLAIN, [1, 2, 0], "must be a positive number"),
    (PLAIN, [1, 2, np.nan], "must be a positive number"),
    ([], None, "must be one or more"),
    (
      [PLAIN[0], few_shot_episodes(NUMBERS[1], 3, 1, 1)],
      None,
      r"families: the first draws .*\(2,\).*, number 1 .* draws .*\(3,\)",
    ),
    ([PLAIN[0], sinusoid(2, 2)], None, "families: the first draws"),
    ([PLAIN[0], 3], None, "families: .*, int given, must be a list of f"),
    (sinusoid(2, 2), None, "families: .* alone given, must be a list of f"),
  ],
)
def test_families_that_do_not_fit_are_refused(families, weights, message):
  with pytest.raises(ValueError, match=message) as raised:
    mixture(families, weights)
  assert "\n" not in str(raised.value)
