"""Images with wrong labels or rare classes, and a picture of what they cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from sklearn.datasets import load_digits

from metajax.runs import plots
from metajax.runs.flags import FLAGS, define_data_dir, refuse
from metajax.tasks.cifar100_files import load_cifar100
from metajax.tasks.omniglot import DRAWINGS, load_omniglot
from metajax.training.logging import waiting
from metajax.types import Batch

flags.DEFINE_enum(
  "data",
  "digits",
  ["digits", "omniglot", "cifar100"],
  "Images. digits: scikit-learn's digits, 8 x 8 pixels. omniglot: characters, "
  "28 x 28 pixels. cifar100: photographs, 32 x 32 pixels.",
)
define_data_dir(", or of CIFAR-100 with --data=cifar100")
flags.DEFINE_integer("classes", 10, "Number of classes, the first ones.", 2)
flags.DEFINE_integer(
  "images",
  None,
  "Number of images of a class that are not for the test. Default: all that "
  "each class has, 90 digits, 15 characters or 500 photographs.",
  2,
)
flags.DEFINE_enum(
  "corruption", "flip", ["flip", "imbalance"], "What is wrong with the data."
)
flags.DEFINE_float(
  "flipped",
  0.4,
  "Share of training labels that are wrong.",
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_integer("ratio", 40, "Images of a common class for a rare one.", 1)
flags.DEFINE_integer("clean", 5, "Number of clean images of a class.", 1)

DIGITS_OF_TEST = 597 / 1797  # A share.
# Omniglot's drawings of a character are by 20 people. These many are for test.
DRAWERS_OF_TEST = 5
CIFAR100_OF_TRAINING = 50_000  # Images of the training file, the first ones.
# Images of a class that are not for test; each digit has more, in every split.
MOST_IMAGES = {"digits": 90, "omniglot": 15, "cifar100": 500}
MOST_CLASSES = {"digits": 10, "omniglot": 1623, "cifar100": 100}


class Split(NamedTuple):
  """One split of the images; all sizes are the same in all splits.

  Inputs are uint8 images `[n, height, width, channels]`, or the digits, which
  are float32 `[n, 64]`.

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


@waiting("loading data")
def splits(number: int) -> Split:
  """Draws splits by --seed, stacked on a leading axis.

  The test images are drawn (digits), are of people who drew no others
  (Omniglot), or are those of the test file (CIFAR-100).

  Raises:
    ValueError: if --clean leaves no image of a class to train on, for more
      classes or images than there are, or for damaged data.
    FileNotFoundError: if the data are missing.
  """
  kind = FLAGS.corruption
  of_other = "ratio" if kind == "flip" else "flipped"
  refuse(of_other, given=f"with --corruption={kind}")
  if FLAGS.data == "digits":
    refuse("data_dir", given="with --data=digits")
  for flag, most in (
    ("classes", MOST_CLASSES[FLAGS.data]),
    ("images", MOST_IMAGES[FLAGS.data]),
  ):
    if (FLAGS[flag].value or 0) > most:
      raise ValueError(
        f"--{flag}={FLAGS[flag].value}: must be at most {most} with "
        f"--data={FLAGS.data}."
      )
  if FLAGS.clean >= images_of_class():
    raise ValueError(
      f"--clean={FLAGS.clean}: must be below {images_of_class()}, the images "
      "of a class that are not for the test."
    )
  images, labels = _images()
  chosen = np.flatnonzero(labels < FLAGS.classes)
  each = [
    _split(images, labels, chosen, np.random.default_rng((FLAGS.seed, i)))
    for i in range(number)
  ]
  return jax.tree.map(lambda *x: jnp.stack(x), *each)


def images_of_class() -> int:
  """Returns how many images of a class are not for the test."""
  return FLAGS.images or MOST_IMAGES[FLAGS.data]


def _images() -> tuple[np.ndarray, np.ndarray]:
  if FLAGS.data == "omniglot":
    drawings = load_omniglot(FLAGS.data_dir).images
    labels = np.repeat(np.arange(len(drawings)), DRAWINGS)
    return drawings.reshape(-1, *drawings.shape[2:]), labels
  if FLAGS.data == "cifar100":
    data = load_cifar100(FLAGS.data_dir)
    return data.images, data.fine
  digits = load_digits()
  images = (digits.images / 16).astype(np.float32).reshape(-1, 64)
  return images, digits.target


def _is_test(order: np.ndarray, draw: np.random.Generator) -> np.ndarray:
  """Returns which images of a random order are for the test, as a mask."""
  if FLAGS.data == "omniglot":
    drawers = draw.permutation(DRAWINGS)[:DRAWERS_OF_TEST]
    return np.isin(order % DRAWINGS, drawers)
  if FLAGS.data == "cifar100":
    return order >= CIFAR100_OF_TRAINING
  return np.arange(len(order)) < round(DIGITS_OF_TEST * len(order))


def _split(
  images: np.ndarray,
  labels: np.ndarray,
  chosen: np.ndarray,
  draw: np.random.Generator,
) -> Split:
  order, classes = draw.permutation(chosen), FLAGS.classes
  is_test = _is_test(order, draw)
  test, order = order[is_test], order[~is_test]
  of_class = [order[labels[order] == c] for c in range(classes)]
  clean = np.concatenate([x[: FLAGS.clean] for x in of_class])
  kept = [x[FLAGS.clean : images_of_class()] for x in of_class]
  targets = labels.copy()
  if FLAGS.corruption == "imbalance":
    few, common = max(1, len(kept[0]) // FLAGS.ratio), (classes + 1) // 2
    right = np.concatenate(kept)
    train = np.concatenate([*kept[:common], *(x[:few] for x in kept[common:])])
  else:
    train = draw.permutation(np.concatenate(kept))
    wrong = train[: round(FLAGS.flipped * len(train))]
    right = train[len(wrong) :] if len(wrong) < len(train) else train
    others = draw.integers(1, classes, len(wrong))
    targets[wrong] = (labels[wrong] + others) % classes

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
