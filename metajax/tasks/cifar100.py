"""CIFAR-FS and FC100, few-shot tasks of CIFAR-100."""

import os
from typing import Any

import numpy as np

from metajax.tasks.cifar100_classes import fine_names, split_classes
from metajax.tasks.cifar100_files import load_cifar100
from metajax.tasks.form import Number
from metajax.tasks.image_files import Images
from metajax.tasks.image_splits import ImageSplits, episodes
from metajax.tasks.standardized import channels_of
from metajax.types import Splits


def cifar_fs(
  data_dir: str | os.PathLike | None = None,
  *,
  ways: Number = 5,
  shots: Number = 1,
  query_shots: Number = 1,
  eval_ways: Number | None = None,
  eval_query_shots: Number | None = None,
  standardize: bool = True,
) -> Splits:
  """N-way K-shot tasks of CIFAR-FS: 64, 16 and 20 classes of CIFAR-100.

  A class has 600 images, from the training and test files of CIFAR-100.

  Args:
    data_dir: folder of the official archive, in the binary or python version,
      or of its unpacked files; `$METAJAX_DATA_DIR` if None.
    ways: N, classes per task, or `(low, high)`, see `few_shot_episodes`.
    shots: K, support images per class, or `(low, high)`.
    query_shots: query images per class, or `(low, high)`.
    eval_ways: N for validation and test; `ways` if None.
    eval_query_shots: query images for validation and test; `query_shots` if
      None.
    standardize: if True, channels have mean 0 and deviation 1 over the training
      classes; if False, pixels are in [0, 1].

  Returns:
    Task families for training, validation and test. The images lie on the
    device in uint8.

  Raises:
    ValueError: for arguments out of range, or damaged data.
    FileNotFoundError: if the data are missing. The message says how to get
      them.

  References:
    Bertinetto et al., `Meta-learning with differentiable closed-form solvers
    <https://arxiv.org/abs/1805.08136>`_, 2018, section 4.1.
  """
  return _episodes(
    "cifar_fs",
    data_dir,
    standardize,
    ways=ways,
    shots=shots,
    query_shots=query_shots,
    eval_ways=eval_ways,
    eval_query_shots=eval_query_shots,
  )


def fc100(
  data_dir: str | os.PathLike | None = None,
  *,
  ways: Number = 5,
  shots: Number = 1,
  query_shots: Number = 1,
  eval_ways: Number | None = None,
  eval_query_shots: Number | None = None,
  standardize: bool = True,
) -> Splits:
  """N-way K-shot tasks of FC100: 12, 4 and 4 superclasses of CIFAR-100.

  The splits have 60, 20 and 20 classes. No superclass is in two splits.

  Args:
    data_dir: see `cifar_fs`, also for the next arguments.
    ways: N, classes per task.
    shots: K, support images per class.
    query_shots: query images per class.
    eval_ways: N for validation and test.
    eval_query_shots: query images for validation and test.
    standardize: whether channels have mean 0 and deviation 1.

  Returns:
    Task families for training, validation and test.

  Raises:
    ValueError: for arguments out of range, or damaged data.
    FileNotFoundError: if the data are missing. The message says how to get
      them.

  References:
    Oreshkin et al., `TADAM: Task dependent adaptive metric for improved
    few-shot learning <https://arxiv.org/abs/1805.10123>`_, 2018, section 4.
  """
  return _episodes(
    "fc100",
    data_dir,
    standardize,
    ways=ways,
    shots=shots,
    query_shots=query_shots,
    eval_ways=eval_ways,
    eval_query_shots=eval_query_shots,
  )


def _episodes(
  name: str,
  data_dir: str | os.PathLike | None,
  standardize: bool,
  **options: Any,
) -> Splits:
  images = cifar100_splits(name, data_dir)
  channels = channels_of(images.train.images) if standardize else None
  return episodes(images, name, channels=channels, **options)


def cifar100_splits(
  name: str, data_dir: str | os.PathLike | None = None
) -> ImageSplits:
  """Returns the images of "cifar_fs" or "fc100", class by class.

  Raises:
    ValueError: for damaged data.
    FileNotFoundError: if the data are missing. The message says how to get
      them.
  """
  data = load_cifar100(data_dir)
  by_class = np.argsort(data.fine, kind="stable").reshape(100, -1)
  names = fine_names()
  parts = []
  for classes in split_classes(name):
    images = data.images[by_class[classes].ravel()]
    labels = np.repeat(np.arange(len(classes)), by_class.shape[1])
    parts.append(Images(images, labels, [names[i] for i in classes]))
  return ImageSplits(*parts)
