"""Tasks within an alphabet: who is in them, how often, and how turned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metajax.tasks.alphabets import alphabet_episodes

# Characters by alphabet, not in order; "c" is too small for tasks of 3.
ALPHABETS = np.array(list("abacabbadca"))
EXAMPLES, SIZE = 4, 5
DRAWS = 3000


def _images():
  """Of class i and example j, 10 i + j in the first pixel."""
  images = np.zeros((len(ALPHABETS), EXAMPLES, SIZE, SIZE, 1), np.uint8)
  numbers = 10 * np.arange(len(ALPHABETS))[:, None] + np.arange(EXAMPLES)
  images[:, :, 0, 0, 0] = numbers
  return jnp.asarray(images)


def _draw(num_rotations=1, seed=0):
  tasks = alphabet_episodes(_images(), ALPHABETS, 3, 1, 2, num_rotations)
  keys = jax.random.split(jax.random.key(seed), DRAWS)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(tasks))(keys))


def _corners(inputs):
  """The four corners by how often a picture was turned, `[..., 4]`."""
  last = SIZE - 1
  places = [(0, 0), (last, 0), (last, last), (0, last)]
  corners = np.stack([inputs[..., i, j, 0] for i, j in places], axis=-1)
  return np.rint(255 * corners).astype(int)


def test_task_is_of_one_alphabet_and_alphabets_are_equally_likely():
  episodes = _draw()
  support = _corners(episodes.support.inputs)[..., 0] // 10
  query = _corners(episodes.query.inputs)[..., 0] // 10
  for classes, labels in (
    (support, episodes.support.targets),
    (query, episodes.query.targets),
  ):
    # A label is of one class, in support and query alike.
    expected = np.take_along_axis(
      support, np.argsort(episodes.support.targets, axis=1), axis=1
    )
    np.testing.assert_array_equal(
      classes, np.take_along_axis(expected, labels, axis=1)
    )
  assert all(len(set(row)) == 3 for row in support)
  names = ALPHABETS[support]
  assert np.all(names == names[:, :1])
  found, counts = np.unique(names[:, 0], return_counts=True)
  assert list(found) == ["a", "b"]
  assert stats.chisquare(counts).pvalue > 1e-3
  # Within an alphabet, its characters are.
  of_a = np.unique(support[names[:, 0] == "a"], return_counts=True)
  assert list(of_a[0]) == list(np.flatnonzero(ALPHABETS == "a"))
  assert stats.chisquare(of_a[1]).pvalue > 1e-3


def test_examples_of_a_class_are_all_different():
  episodes = _draw()
  numbers = np.concatenate(
    [_corners(b.inputs)[..., 0] for b in episodes], axis=1
  )
  assert all(len(set(row)) == 9 for row in numbers)


@pytest.mark.slow
@pytest.mark.parametrize("num_rotations", [2, 4])
def test_alphabet_is_turned_as_a_whole(num_rotations):
  episodes = _draw(num_rotations)
  inputs = np.concatenate([b.inputs for b in episodes], axis=1)
  # The class that is 0 shows no ink in example 0.
  turns = np.where(_corners(inputs).any(-1), _corners(inputs).argmax(-1), -1)
  turn = turns.max(axis=1)
  assert np.all((turns == turn[:, None]) | (turns == -1))
  counts = np.bincount(turn, minlength=4)
  assert stats.chisquare(counts[:num_rotations]).pvalue > 1e-3
  assert not counts[num_rotations:].any()


def test_more_ways_than_characters_are_refused():
  with pytest.raises(ValueError, match="^ways=6: must be at most 5, the"):
    alphabet_episodes(_images(), ALPHABETS, 6, 1, 1)
  with pytest.raises(ValueError, match="^num_rotations=3"):
    alphabet_episodes(_images(), ALPHABETS, 3, 1, 1, 3)
