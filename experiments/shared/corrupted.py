"""Digits with wrong labels or rare classes, and a picture of what they cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from metajax.runs import plots
from metajax.runs.flags import FLAGS
from metajax.types import Batch

NUM_TEST = 597
OF_CLASS = 90  # Each class has more images than these, in every split.


class Split(NamedTuple):
  """One split of the images; all sizes are the same in all splits.

  Attributes:
    train: the training set, with its faults.
    right: what an oracle trains on: the images of `train` with right labels, or
      without rare classes.
    clean: the clean set, as many images of each class.
    test: the test set.
  """

  train: Batch
  right: Batch
  clean: Batch
  test: Batch


def splits(number: int) -> Split:
  """Draws splits by --seed, stacked on a leading axis.

  Raises:
    ValueError: if --clean leaves no image of a class to train on.
  """
  digits = load_digits()
  images = (digits.images / 16).astype(np.float32).reshape(-1, 64)
  each = [
    _split(images, digits.target, np.random.default_rng((FLAGS.seed, i)))
    for i in range(number)
  ]
  return jax.tree.map(lambda *x: jnp.stack(x), *each)


def _split(
  images: np.ndarray, labels: np.ndarray, draw: np.random.Generator
) -> Split:
  order = draw.permutation(len(labels))
  test, order = order[:NUM_TEST], order[NUM_TEST:]
  of_class = [order[labels[order] == c] for c in range(10)]
  if FLAGS.clean >= OF_CLASS:
    raise ValueError(
      f"--clean={FLAGS.clean}: must be below {OF_CLASS}, the images of a class "
      "that are not for the test."
    )
  clean = np.concatenate([x[: FLAGS.clean] for x in of_class])
  kept = [x[FLAGS.clean : OF_CLASS] for x in of_class]
  targets = labels.copy()
  if FLAGS.corruption == "imbalance":
    few = max(1, len(kept[0]) // FLAGS.ratio)
    right = np.concatenate(kept)
    train = np.concatenate([*kept[:5], *(x[:few] for x in kept[5:])])
  else:
    train = draw.permutation(np.concatenate(kept))
    wrong = train[: round(FLAGS.flipped * len(train))]
    right = train[len(wrong) :] if len(wrong) < len(train) else train
    targets[wrong] = (labels[wrong] + draw.integers(1, 10, len(wrong))) % 10

  def batch(chosen: np.ndarray, targets: np.ndarray = labels) -> Batch:
    return Batch(images[chosen], targets[chosen].astype(np.int32))

  return Split(batch(train, targets), batch(right), batch(clean), batch(test))


def draw(path: Path, accuracies: Mapping[str, np.ndarray]) -> None:
  """Draws one point for each training, and lines between those of a seed."""
  figure, axes = plots.pyplot().subplots(figsize=(6, 3.6), layout="constrained")
  names = list(accuracies)
  values = np.stack([accuracies[name] for name in names])
  axes.plot(values, color="C0", alpha=0.3, marker=".")
  axes.plot(values.mean(1), color="black", marker="_", markersize=20, ls="")
  axes.set_xticks(range(len(names)), [x.replace("_", " ") for x in names])
  axes.set(ylabel="test accuracy in percent")
  axes.grid(alpha=0.3, axis="y")
  plots.save(figure, path)
