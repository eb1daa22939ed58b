"""Images that stay on a disk and are read when they are indexed."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.tasks.image_arrays import (
  Arrays,
  check_square,
  mapped,
  read_labels,
)
from metajax.tasks.image_files import (
  Images,
  in_channels,
  is_coloured,
  read_file,
  resized,
)
from metajax.tasks.reading_ahead import read_ahead

PART_BYTES = 4 * 2**20  # Of the images that `parts` reads at once.


@dataclasses.dataclass(frozen=True)
class StoredImages:
  """Images on a disk, which are indexed like a uint8 array of their shape.

  Attributes:
    read: `(row) -> image`, uint8 `[size, size, 1 or 3]`. It is picklable.
    shape: `(n, size, size, channels)`.
  """

  read: Callable[[int], np.ndarray]
  shape: tuple[int, int, int, int]

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, rows: Any) -> np.ndarray:
    """Reads the images of some rows, `[..., size, size, channels]`.

    Raises:
      IndexError: as numpy for rows that there are not.
      ValueError: for a file that is not an image, or that has changed.
    """
    # By numpy's rules, those for bools and for numbers below zero, too.
    numbers = np.arange(len(self))[rows]
    found = np.empty((numbers.size, *self.shape[1:]), np.uint8)
    for image, row in zip(found, numbers.ravel().tolist(), strict=True):
      image[:] = in_channels(self.read(row), self.shape[-1])
    return found.reshape(*numbers.shape, *self.shape[1:])

  def in_channels(self, channels: int) -> "StoredImages":
    """Returns grey images as coloured ones, or coloured ones as grey."""
    return dataclasses.replace(self, shape=(*self.shape[:-1], channels))

  def parts(self) -> Iterator[np.ndarray]:
    """Reads all images in order, some at a time."""
    size = max(1, PART_BYTES // math.prod(self.shape[1:]))
    parts = range(-(-len(self) // size))
    return read_ahead(functools.partial(_part, self, size), parts)


def _part(images: StoredImages, size: int, number: int) -> np.ndarray:
  return images[number * size : (number + 1) * size]


class Files(NamedTuple):
  """Files of images, and what tells that they have not changed.

  Attributes:
    names: the paths.
    sizes: int64 `[n]`, their sizes in bytes.
    times: int64 `[n]`, the times of their last modification in nanoseconds.
  """

  names: list[str]
  sizes: np.ndarray
  times: np.ndarray


def stored_files(
  splits: Sequence[Sequence[tuple[str, Sequence[tuple[Path, int, int, int]]]]],
  size: int,
) -> list[Images]:
  """Returns the images of the files of three splits, without reading them.

  Args:
    splits: for each split its classes, pairs of a name and files. A file is a
      path, its size in bytes, the time of its last modification in nanoseconds,
      and anything.
    size: the height and width of the images.

  Raises:
    ValueError: for a file that is not an image.
  """
  paths = (x[0] for classes in splits for _, files in classes for x in files)
  # It ends at the first coloured image.
  channels = 3 if any(map(is_coloured, paths)) else 1
  made = []
  for classes in splits:
    found = [x for _, files in classes for x in files]
    files = Files(
      [str(x[0]) for x in found],
      *(np.array([x[i] for x in found], np.int64) for i in (1, 2)),
    )
    images: Any = StoredImages(
      functools.partial(_read_file, files, size),
      (len(found), size, size, channels),
    )
    labels = np.repeat(np.arange(len(classes)), [len(x) for _, x in classes])
    made.append(Images(images, labels, [name for name, _ in classes]))
  return made


def _read_file(files: Files, size: int, row: int) -> np.ndarray:
  path = Path(files.names[row])
  try:
    stat = os.stat(path)
    same = (stat.st_size, stat.st_mtime_ns) == (
      files.sizes[row],
      files.times[row],
    )
  except OSError:
    same = False
  if not same:
    raise ValueError(
      f"{path} has changed since the run began: put it back, or start a new "
      "run."
    )
  return read_file(path, size)


def stored_arrays(splits: Sequence[Arrays], size: int | None) -> list[Images]:
  """Returns the images of npy files, without reading them.

  Args:
    splits: the files of each split.
    size: the height and width of the images; None: those of the arrays.

  Raises:
    ValueError: for npz archives, other arrays, or damaged files.
  """
  made = []
  for pair in splits:
    rows = mapped(pair)
    labels, names = read_labels(pair, len(rows))
    check_square(rows, pair, size)
    side = size or rows.shape[1]
    images: Any = StoredImages(
      functools.partial(_read_row, pair, size),
      (len(rows), side, side, rows.shape[-1]),
    )
    made.append(Images(images, labels, names))
  return made


def _read_row(pair: Arrays, size: int | None, row: int) -> np.ndarray:
  image = mapped(pair)[row]
  return image if size is None else resized(image[None], size)[0]
