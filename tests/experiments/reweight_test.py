"""Splits with wrong labels: whose images they have, and how many are wrong."""

import subprocess
import sys

import pytest

# A process of its own, as scripts have flags of the same names. The pixels of
# an image are its number.
PROGRAM = """
import numpy as np
import experiments.reweight
from experiments.shared import corrupted
from metajax.runs.flags import FLAGS

FLAGS(["reweight", "--inner_lr=0.1", "--steps=1"])
FLAGS.classes, FLAGS.clean, FLAGS.seed = 4, 3, 7


def numbers(batch):
  return np.asarray(batch.inputs).view(np.uint32).ravel()


def check(data, images, labels, of_class):
  pixels = np.arange(images, dtype=np.uint32).view(np.uint8)
  corrupted._images = lambda: (pixels.reshape(images, 1, 1, 4), labels)
  FLAGS.data, found = data, []
  for corruption in "flip", "imbalance":
    FLAGS.corruption = corruption
    many = corrupted.splits(2)
    for i in range(2):
      split = corrupted.Split(
        *(type(b)(b.inputs[i], b.targets[i]) for b in many)
      )
      train, right, clean, test = map(numbers, split)
      for batch in split[1:]:
        np.testing.assert_array_equal(batch.targets, labels[numbers(batch)])
      assert not {*train} & {*clean} and not {*test} & {*train, *clean, *right}
      wrong = split.train.targets != labels[train]
      each = np.bincount(labels[train], minlength=4)
      assert np.bincount(labels[clean]).tolist() == [3] * 4
      if corruption == "flip":
        assert each.tolist() == [of_class - 3] * 4
        assert wrong.sum() == round(0.4 * len(train))
        np.testing.assert_array_equal(train[~wrong], right)
        # Each other class is as likely.
        shifts = (split.train.targets - labels[train])[wrong] % 4
        share = np.bincount(shifts, minlength=4)[1:] / wrong.sum()
        np.testing.assert_allclose(share, 1 / 3, atol=3 / len(train) ** 0.5)
      else:
        few = max(1, (of_class - 3) // FLAGS.ratio)
        assert each.tolist() == [of_class - 3] * 2 + [few] * 2
        assert not wrong.any()
      found.append((train, test))
  assert set(found[0][0]) != set(found[1][0])
  return found


for train, test in check("omniglot", 120, np.repeat(np.arange(6), 20), 15):
  drawers = {*test % 20}
  assert len(drawers) == 5 and not drawers & {*train % 20}
labels = np.concatenate([np.arange(50_000) % 100, np.arange(10_000) % 100])
for train, test in check("cifar100", 60_000, labels, 500):
  assert train.max() < 50_000
  np.testing.assert_array_equal(
    np.sort(test), 50_000 + np.flatnonzero(labels[50_000:] < 4)
  )
FLAGS.images = 10
check("cifar100", 60_000, labels, 10)
"""


@pytest.mark.slow
def test_splits_have_the_right_images_and_wrong_labels():
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
