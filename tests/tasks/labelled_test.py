"""Tasks of any arrays, of `X, y`, and of numbers that vary.

A number tells an example: 100 times its class, and its place in the class.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks import class_batches, few_shot_episodes, labelled_episodes
from metajax.tasks.alphabets import alphabet_episodes

COUNTS = np.array([6, 2, 9, 4, 3])
LABELS = np.repeat(np.arange(5), COUNTS)
NUMBERS = np.concatenate([100 * i + np.arange(c) for i, c in enumerate(COUNTS)])
SHUFFLE = np.random.default_rng(0).permutation(len(LABELS))
TASKS = 1500


def _draw(family, num_tasks=TASKS):
  keys = jax.random.split(jax.random.key(0), num_tasks)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(family))(keys))


def _assert_binomial(count, trials, probability):
  """That of independent trials, within 4.5 sigma."""
  sigma = np.sqrt(trials * probability * (1 - probability))
  assert np.all(np.abs(count - trials * probability) < 4.5 * sigma)


@pytest.mark.slow
@pytest.mark.parametrize(
  "dtype", ["uint8", "int32", "float16", "bfloat16", "float32", "bool"]
)
@pytest.mark.parametrize("shape", [(), (2,)])
def test_any_array_is_drawn_from_and_bytes_alone_become_fractions(shape, dtype):
  """The indices are those of an array of indices, by the same key."""
  x = np.random.default_rng(0).integers(0, 200, (4, 5, *shape))
  x = np.asarray(jnp.asarray(x).astype(dtype))
  places = np.arange(20, dtype=np.int32).reshape(4, 5)
  key = jax.random.key(3)
  found = few_shot_episodes(x, 3, 1, 2)(key)
  expected = few_shot_episodes(places, 3, 1, 2)(key)
  for batch, index in zip(found, expected, strict=True):
    rows = x.reshape(20, *shape)[index.inputs]
    if dtype == "uint8":
      assert batch.inputs.dtype == np.float32
      np.testing.assert_allclose(batch.inputs, rows / 255, atol=1e-7)
    else:
      assert batch.inputs.dtype == x.dtype
      np.testing.assert_array_equal(batch.inputs, rows)
    assert batch.mask is None
    np.testing.assert_array_equal(batch.targets, index.targets)


def test_families_of_numpy_and_of_jax_carry_the_same_arrays_of_jax():
  images = np.random.default_rng(0).integers(0, 256, (4, 6, 3, 3, 1), np.uint8)
  alphabets, counts = list("abab"), np.array([5, 6, 6, 5])
  for family in (
    lambda x, to: few_shot_episodes(to(x), 2, 1, 2, 4),
    lambda x, to: few_shot_episodes(to(x), 2, 1, 2, 1, to(counts)),
    lambda x, to: alphabet_episodes(to(x), alphabets, 2, 1, 2, 4),
    lambda x, to: class_batches(to(x), 2),
    lambda x, to: labelled_episodes(
      to(x.reshape(24, 3, 3, 1)), to(np.arange(24) % 4), 2, 1, 2, 4
    ),
  ):
    one, other = (
      jax.tree.leaves(family(images, to)) for to in (np.asarray, jnp.asarray)
    )
    assert all(isinstance(x, jax.Array) for x in one)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_trees_are_drawn_together():
  inputs = {"image": NUMBERS[SHUFFLE] % 256, "place": (NUMBERS[SHUFFLE],)}
  inputs["image"] = inputs["image"].astype(np.uint8)
  support, _ = labelled_episodes(inputs, LABELS[SHUFFLE], 5, 1, 1)(
    jax.random.key(0)
  )
  np.testing.assert_array_equal(
    np.rint(255 * support.inputs["image"]), support.inputs["place"][0] % 256
  )
  square = NUMBERS[:24].reshape(4, 6)
  _, query = few_shot_episodes((square, -square), 2, 1, 1)(jax.random.key(0))
  np.testing.assert_array_equal(query.inputs[0], -query.inputs[1])


def test_tasks_are_of_whole_classes_and_examples_are_equally_likely():
  names = np.array(["cat", "a", "zebra", "", "dog"])
  family = labelled_episodes(NUMBERS[SHUFFLE], names[LABELS][SHUFFLE], 3, 1, 1)
  episodes = _draw(family)
  numbers = np.concatenate([b.inputs for b in episodes], axis=1)
  targets = np.concatenate([b.targets for b in episodes], axis=1)
  assert set(numbers.ravel()) == set(NUMBERS)
  for row, target in zip(numbers, targets, strict=True):
    assert len(set(row)) == 6
    assert len({(x // 100, y) for x, y in zip(row, target, strict=True)}) == 3
  for i, count in enumerate(COUNTS):
    used = np.sum(numbers // 100 == i)
    _assert_binomial(used / 2, TASKS, 3 / 5)
    each = np.bincount(numbers[numbers // 100 == i] % 100, minlength=count)
    _assert_binomial(each, TASKS, 3 / 5 * 2 / count)


@pytest.mark.parametrize(
  "names",
  [
    np.array([7, -3, 2**40, 0, 5]),
    np.array([200, 1, 0, 7, 255], np.uint8),
    np.array(["cat", "a", "zebra", "", "dog"], object),
  ],
)
def test_labels_are_any_integers_or_strings(names):
  """The classes are stored in the order of their names."""
  family = labelled_episodes(NUMBERS[SHUFFLE], names[LABELS][SHUFFLE], 3, 1, 1)
  numbers, counts, starts = map(np.asarray, family.args[0])
  for name, count, start in zip(sorted(names), counts, starts, strict=True):
    expected = NUMBERS[names[LABELS] == name]
    assert sorted(numbers[start : start + count]) == list(expected)


def test_each_example_is_stored_once_and_not_copied_into_programs():
  family = labelled_episodes(NUMBERS[SHUFFLE], LABELS[SHUFFLE], 3, 1, 1)
  sizes = sorted(x.size for x in jax.tree.leaves(family))
  assert sizes == [5, 5, len(NUMBERS)]  # And where each class begins and ends.
  sample = jax.jit(lambda family, key: family(key))
  key = jax.random.key(0)
  moved = jax.tree.map(
    lambda x: x + 1000 if x.size == len(NUMBERS) else x, family
  )
  np.testing.assert_array_equal(
    sample(moved, key).query.inputs, sample(family, key).query.inputs + 1000
  )


@functools.cache
def _varying():
  """2 to 4 of five classes, 1 to 3 shots, 2 to 4 queries; some have fewer."""
  return _draw(
    labelled_episodes(
      NUMBERS[SHUFFLE],
      LABELS[SHUFFLE],
      (2, 4),
      (1, 3),
      (2, 4),
      small_classes=True,
    )
  )


def _of_class(batch, task, label):
  real = batch.mask[task] & (batch.targets[task] == label)
  return batch.inputs[task][real]


def test_padding_is_zero_and_of_label_0():
  for batch, most in zip(_varying(), (12, 16), strict=True):
    assert batch.inputs.shape == (TASKS, most)
    assert batch.mask.dtype == bool
    assert not batch.inputs[~batch.mask].any()
    assert not batch.targets[~batch.mask].any()


def test_numbers_of_a_task_are_equally_likely_and_small_classes_give_all():
  support, query = _varying()
  ways = np.where(query.mask, query.targets, 0).max(axis=1) + 1
  for number in (2, 3, 4):
    _assert_binomial(np.sum(ways == number), TASKS, 1 / 3)
  shots, seen = [], set()
  for task in range(TASKS):
    labels = sorted(set(support.targets[task][support.mask[task]]))
    assert labels == list(range(ways[task]))
    learned = [_of_class(support, task, y) for y in labels]
    judged = [_of_class(query, task, y) for y in labels]
    # All of a task have as many, but for those that have not enough.
    most_shots = max(map(len, learned))
    most_queries = max(map(len, judged))
    classes = set()
    for known, asked in zip(learned, judged, strict=True):
      (index,) = {x // 100 for x in (*known, *asked)}
      classes.add(index)
      numbers = {*known, *asked}
      seen |= numbers
      assert len(numbers) == len(known) + len(asked)
      assert len(known) == min(most_shots, COUNTS[index] - 1)
      assert len(asked) == min(most_queries, COUNTS[index] - len(known))
    assert len(classes) == ways[task]
    if 2 in classes:  # The class of nine has enough.
      shots.append((most_shots, most_queries))
  assert seen == set(NUMBERS)
  for pair in np.ndindex(3, 3):
    number = shots.count((pair[0] + 1, pair[1] + 2))
    _assert_binomial(number, len(shots), 1 / 9)


@pytest.mark.slow
def test_numbers_that_do_not_vary_are_those_without_a_mask():
  """The same key draws the same classes and examples, masked or not."""
  square = NUMBERS[:24].reshape(4, 6)
  key = jax.random.key(5)
  plain = few_shot_episodes(square, 3, 2, 2)(key)
  masked = few_shot_episodes(square, 3, 2, 2, small_classes=True)(key)
  for a, b in zip(plain, masked, strict=True):
    assert b.mask.all()
    np.testing.assert_array_equal(a.inputs, b.inputs)
    np.testing.assert_array_equal(a.targets, b.targets)
  # More than there are: 5 for the support, and the sixth for the query.
  episode = few_shot_episodes(square, 2, 9, 8, small_classes=True)(key)
  assert [int(b.mask.sum()) for b in episode] == [10, 2]
  assert [b.inputs.shape for b in episode] == [(18,), (16,)]


@pytest.mark.slow
def test_turned_classes_may_vary_too():
  images = np.random.default_rng(0).integers(1, 256, (20, 3, 3, 1), np.uint8)
  family = labelled_episodes(
    images, LABELS[:20] // 2, (2, 4), (1, 2), 2, 4, small_classes=True
  )
  support, query = _draw(family, 50)
  known = {np.rot90(x, k).tobytes() for x in images for k in range(4)}
  for batch in (support, query):
    pixels = np.rint(255 * batch.inputs).astype(np.uint8)
    assert all(x.tobytes() in known for x in pixels[batch.mask])
    assert not pixels[~batch.mask].any()


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"labels": LABELS[1:]}, r"labels: int64 \(23,\) given, must be .* \[24\]"),
    ({"labels": LABELS / 2}, "labels: float64"),
    ({"labels": np.array([None] * 24)}, "labels: object"),
    (
      {"labels": np.array([*"abcd" * 5, "a", np.nan, "b", "c"], object)},
      "labels: missing for 1 of 24 examples, such as 21;",
    ),
    ({"labels": LABELS[:, None]}, r"labels: int64 \(24, 1\)"),
    ({"inputs": NUMBERS.astype(str)}, "inputs: <U"),
    ({"inputs": np.float32(3)}, r"inputs: float32 \(\)"),
    ({"inputs": (NUMBERS, NUMBERS[1:])}, "inputs: arrays of first axes"),
    ({"shots": 2}, "shots=2 and query_shots=1: together at most 2, .* small"),
    ({"ways": 6}, "ways=6: must be at most 5"),
    ({"num_rotations": 2}, r"num_rotations=2: inputs of \(24,\) cannot turn"),
    (
      {"labels": np.arange(24), "small_classes": True},
      "small_classes: the smallest class has 1",
    ),
  ],
)
def test_what_does_not_do_is_named(arguments, message):
  given = {
    "inputs": NUMBERS,
    "labels": LABELS,
    "ways": 2,
    "shots": 1,
    "query_shots": 1,
  }
  with pytest.raises(ValueError, match=f"^{message}.*$"):
    labelled_episodes(**given | arguments)


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int32])
def test_bytes_of_0_and_1_are_warned_of(dtype):
  """They become 0 and 1 / 255, which a mask must not be."""
  X = {
    "image": np.arange(120, dtype=np.uint8).reshape(10, 12),
    "mask": (np.arange(120).reshape(10, 12) % 2).astype(dtype),
  }
  y = np.repeat([0, 1], 5)
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    labelled_episodes(X, y, ways=2, shots=1, query_shots=1)
  messages = [str(x.message) for x in found]
  assert len(messages) == (dtype == np.uint8)
  assert all(x.startswith("inputs['mask']: uint8 numbers") for x in messages)
