"""The pairs that are confused most, against counting one query at a time."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.runs import confusion
from metajax.tasks import few_shot_episodes, labelled_episodes
from metajax.tasks.few_shot import drawn_classes
from metajax.tasks.image_files import Images
from metajax.tasks.standardized import Channels, standardized

WAYS, QUERIES = 3, 4


def _bound(wrong, total):
  """Wilson's interval is where `|share - p| = 1.96 sqrt(p (1 - p) / n)`."""
  share, z = wrong / total, 1.96
  roots = np.roots([1 + z**2 / total, -(2 * share + z**2 / total), share**2])
  return min(roots.real)


def test_worst_pairs_are_those_of_a_count_query_by_query():
  draw = np.random.default_rng(0)
  tables, classes = [], []
  wrong, total = Counter(), Counter()
  for _ in range(200):
    chosen = draw.permutation(6)[:WAYS]
    labels = np.repeat(np.arange(WAYS), QUERIES)
    # Class 5 is often taken for class 2, and others now and then.
    logits = draw.normal(size=(len(labels), WAYS)) + 3 * np.eye(WAYS)[labels]
    if {2, 5} <= {*chosen}:
      five, two = (list(chosen).index(c) for c in (5, 2))
      logits[labels == five, two] += 3
    tables.append(confusion.table(jnp.asarray(logits), jnp.asarray(labels)))
    classes.append(chosen)
    for label, predicted in zip(labels, logits.argmax(-1), strict=True):
      for other in set(range(WAYS)) - {label}:
        pair = int(chosen[label]), int(chosen[other])
        total[pair] += 1
        wrong[pair] += other == predicted
  found = confusion.worst_pairs(np.stack(tables), np.stack(classes), 4)
  expected = sorted(wrong, key=lambda p: -_bound(wrong[p], total[p]))[:4]
  assert found == [
    confusion.Pair(*pair, wrong[pair], total[pair]) for pair in expected
  ]
  assert found[0][:2] == (5, 2)


def test_pairs_without_an_error_are_left_out():
  table = np.diag([4.0, 4.0])
  table[0] = [3, 1]
  pairs = confusion.worst_pairs(table[None], np.asarray([[7, 3]]), 6)
  assert pairs == [confusion.Pair(7, 3, 1, 4)]


def test_a_pair_seen_once_ranks_below_one_confused_often():
  tables = np.zeros((11, 2, 2))
  tables[0] = [[0, 1], [0, 1]]  # All of one query.
  tables[1:] = [[0.4, 0.6], [0, 1]]  # 6 of 10.
  classes = np.asarray([[0, 1]] + 10 * [[2, 3]])
  found = confusion.worst_pairs(tables, classes, 2)
  assert [pair[:2] for pair in found] == [(2, 3), (0, 1)]
  assert math.isclose(_bound(6, 10), confusion._lower_bound(6.0, 10.0))


@pytest.mark.slow
@pytest.mark.parametrize("num_rotations", [1, 4])
@pytest.mark.parametrize("labelled", [False, True])
def test_classes_of_a_task_are_told_by_its_key(num_rotations, labelled):
  """Class c is a corner of grey c; a turn moves the corner."""
  num_classes, per_class = 7, 5
  images = np.zeros((num_classes, per_class, 2, 2, 1), np.float32)
  images[:, :, 0, 0, 0] = np.arange(1, num_classes + 1)[:, None]
  numbers = (WAYS, 1, 1, num_rotations)
  if labelled:
    labels = np.repeat(np.arange(num_classes), per_class)
    tasks = labelled_episodes(images.reshape(-1, 2, 2, 1), labels, *numbers)
  else:
    tasks = few_shot_episodes(images, *numbers)
  tasks = standardized(tasks, Channels((0.0,), (1.0,)))
  for seed in range(5):
    key = jax.random.key(seed)
    support = tasks(key).support
    drawn = drawn_classes(key, num_classes * num_rotations, WAYS)
    for image, label in zip(support.inputs, support.targets, strict=True):
      number, turn = divmod(int(drawn[label]), num_rotations)
      np.testing.assert_array_equal(image, np.rot90(images[number, 0], turn))


def test_queries_without_a_prediction_are_taken_for_no_class():
  logits = jnp.array([[np.nan, 1.0], [np.nan, np.nan], [0.0, 1.0]])
  found = confusion.table(logits, jnp.array([0, 1, 1]))
  np.testing.assert_array_equal(found, [[0, 0], [0, 1]])


def test_any_images_and_any_number_of_pairs_are_drawn(tmp_path):
  images = Images(
    np.zeros((4, 3, 3, 1), np.uint8), np.asarray([0, 0, 0, 1]), ["a", "b"]
  )
  for pairs in ([], [confusion.Pair(0, 3, 1, 2)]):
    path = tmp_path / f"{len(pairs)}.png"
    confusion._draw(path, pairs, images, 2)
    assert path.stat().st_size > 0
