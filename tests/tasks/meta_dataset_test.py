"""Tasks as Meta-Dataset draws them, against its equations in numpy.

A number tells an example: 1000 times its class and one, and its place.
"""

import functools

import jax
import numpy as np
import pytest

from metajax.tasks.meta_dataset import Limits, meta_dataset_episodes, shots_of

SIZES = np.array([9, 30, 4, 12, 20, 7])
LABELS = np.repeat(np.arange(6), SIZES)
NUMBERS = np.concatenate(
  [1000 * (i + 1) + np.arange(n) for i, n in enumerate(SIZES)]
)
SHUFFLE = np.random.default_rng(0).permutation(len(LABELS))
LIMITS = Limits(2, 4, 3, 10, 25)
TASKS = 600


@functools.cache
def _episodes():
  family = meta_dataset_episodes(NUMBERS[SHUFFLE], LABELS[SHUFFLE], LIMITS)
  keys = jax.random.split(jax.random.key(0), TASKS)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(family))(keys))


def _tasks():
  """Real numbers and labels of the support and of the query, task by task."""
  support, query = _episodes()
  for task in range(TASKS):
    yield [
      (b.inputs[task][b.mask[task]], b.targets[task][b.mask[task]])
      for b in (support, query)
    ]


def test_shapes_are_of_the_largest_task_and_padding_is_zero():
  for batch, size in zip(_episodes(), (25, 12), strict=True):
    assert batch.inputs.shape == batch.mask.shape == (TASKS, size)
    assert not batch.inputs[~batch.mask].any()
    assert not batch.targets[~batch.mask].any()
    assert batch.inputs[batch.mask].all()


def test_examples_are_of_their_class_and_all_different():
  seen = set()
  for (learned, known), (asked, labels) in _tasks():
    numbers = np.concatenate([learned, asked])
    targets = np.concatenate([known, labels])
    assert len(set(numbers)) == len(numbers)
    pairs = set(zip(numbers // 1000, targets, strict=True))
    ways = len(set(targets))
    assert len(pairs) == ways == len(set(known)) == len(set(labels))
    assert set(targets) == set(range(ways))
    seen |= set(numbers)
  assert seen == set(NUMBERS)


def test_queries_are_balanced_and_half_of_the_smallest_class_at_most():
  for _, (asked, labels) in _tasks():
    sizes = SIZES[asked.astype(int) // 1000 - 1]
    queries = min(3, sizes.min() // 2)
    assert set(np.bincount(labels)) == {queries}


def test_ways_are_equally_likely_and_so_are_classes():
  ways, classes = [], np.zeros(6)
  for _, (asked, labels) in _tasks():
    ways.append(labels.max() + 1)
    classes[sorted(set(asked.astype(int) // 1000 - 1))] += 1
  for number in (2, 3, 4):
    assert abs(ways.count(number) - TASKS / 3) < 4.5 * np.sqrt(TASKS * 2 / 9)
  # 3 of 6 classes on average: each is in half of the tasks.
  assert np.all(np.abs(classes - TASKS / 2) < 4.5 * np.sqrt(TASKS / 4))


def test_shots_differ_between_classes_and_tasks():
  shots = [np.bincount(known) for (_, known), _ in _tasks()]
  assert len({tuple(x) for x in shots}) > 100
  assert all(x.min() >= 1 and x.sum() <= 25 for x in shots)
  assert max(x.max() for x in shots) > 10  # No class is cut at most_of_class.


def _by_numpy(sizes, limits, part, balance):
  """The paper's equations, for classes that are all real."""
  queries = min(limits.most_query_shots, min(sizes) // 2)
  support = sum(
    int(np.ceil(part * min(limits.most_of_class, n - queries))) for n in sizes
  )
  support = min(support, limits.most_support)
  weights = np.exp(balance) * sizes
  weights = weights / weights.sum()
  return queries, [
    min(int(np.floor(w * (support - len(sizes)))) + 1, n - queries)
    for w, n in zip(weights, sizes, strict=True)
  ]


@pytest.mark.parametrize("limits", [LIMITS, Limits()])
def test_numbers_are_those_of_the_equations(limits):
  """With the same random numbers, in float64 but where a floor is near."""
  sizes = np.array([9, 30, 4, 700, 20])
  real = np.array([True, True, False, True, True])
  shots = jax.jit(shots_of, static_argnums=2)
  for seed in range(40):
    key = jax.random.key(seed)
    found, queries = shots(sizes, real, limits, key)
    size_key, balance_key = jax.random.split(key)
    part = 1 - float(jax.random.uniform(size_key))
    low, high = np.log(np.float32([0.5, 2]))
    balance = jax.random.uniform(balance_key, (5,), minval=low, maxval=high)
    balance = np.float64(balance)[real]
    expected = _by_numpy(sizes[real], limits, part, balance)
    assert int(queries) == expected[0]
    assert found[2] == 0
    np.testing.assert_array_equal(found[real], expected[1])


@pytest.mark.parametrize(
  "limits, message",
  [
    (Limits(least_ways=7), "least_ways=7 is more than the 6 classes"),
    (Limits(least_ways=1), "2 <= least_ways"),
    (Limits(most_ways=600), "most_ways <= most_support"),
    (Limits(most_query_shots=0), "integers of 1 or more"),
    (Limits(most_of_class=2.5), "integers of 1 or more"),
  ],
)
def test_limits_that_cannot_be_are_refused(limits, message):
  with pytest.raises(ValueError, match=message) as raised:
    meta_dataset_episodes(NUMBERS, LABELS, limits)
  assert "\n" not in str(raised.value)


def test_class_of_one_example_is_refused():
  with pytest.raises(ValueError, match="smallest class"):
    meta_dataset_episodes(np.arange(5), [0, 0, 1, 1, 2], Limits(2, 2))
