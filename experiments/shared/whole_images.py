"""Images of three splits by name, for tasks of which each is one image."""

from typing import NamedTuple

import numpy as np
from absl import flags

from metajax.runs.flags import FLAGS, refuse
from metajax.tasks.cifar100 import cifar100_splits
from metajax.tasks.omniglot import load_omniglot, split_characters

flags.DEFINE_enum(
  "data",
  "digits",
  ["digits", "omniglot", "cifar100"],
  "Images. digits: scikit-learn's digits, 8 x 8 pixels. omniglot: characters, "
  "28 x 28 pixels, of other classes at test. cifar100: CIFAR-100, 32 x 32 "
  "pixels in colour, of other classes at test, those of CIFAR-FS.",
)
DIGITS = (1200, 197)  # Images for training and for validation; 400 for test.


class WholeImages(NamedTuple):
  """Images `[n, height, width, channels]`, uint8, of three splits."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def load() -> WholeImages:
  """Reads the images of --data. The splits are the same in every run.

  Raises:
    ValueError: for damaged data.
    FileNotFoundError: if the data are missing. The message says how to get
      them.
  """
  if FLAGS.data == "digits":
    refuse("data_dir", given="with --data=digits")
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    images = images[order][..., None]
    return WholeImages(*np.split(images, np.cumsum(DIGITS)))
  if FLAGS.data == "omniglot":
    data = load_omniglot(FLAGS.data_dir)
    parts = split_characters(data, "random", 0)
    drawings = (data.images[characters] for characters in parts)
    return WholeImages(*(x.reshape(-1, *x.shape[2:]) for x in drawings))
  splits = cifar100_splits("cifar_fs", FLAGS.data_dir)
  return WholeImages(*(split.images for split in splits))
