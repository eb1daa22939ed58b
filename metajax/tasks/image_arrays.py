"""Reads the images of three splits from files of numpy arrays."""

import functools
import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.tasks.image_files import Images, resized
from metajax.tasks.image_lists import SPLIT_NAMES

# Errors from reading a damaged file.
DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class Arrays(NamedTuple):
  """The files of one split.

  Attributes:
    images: an npz archive, or the npy file of the images.
    labels: the same archive, or the npy file of the labels.
  """

  images: Path
  labels: Path


def has_arrays(root: Path) -> bool:
  """Tells whether a folder has arrays of any of the three splits."""
  return any(_split_files(root))


def array_files(root: Path) -> list[Arrays] | None:
  """Returns the files of the three splits, None if there are no such files.

  The files are `train.npz`, `val.npz` and `test.npz` with the arrays images and
  labels, or `train_images.npy`, `train_labels.npy` and so on.

  Raises:
    ValueError: if some of the files are missing.
  """
  if not has_arrays(root):
    return None
  found = []
  for pair, names in zip(_split_files(root), SPLIT_NAMES, strict=True):
    if pair is None:
      raise ValueError(
        f"--data_dir={root}: no {names[0]}.npz and no {names[0]}_images.npy "
        "beside the arrays of the other splits."
      )
    if not pair.labels.is_file():
      raise ValueError(f"{pair.labels}: is not there, but {pair.images} is.")
    found.append(pair)
  return found


def _split_files(root: Path) -> list[Arrays | None]:
  found = []
  for names in SPLIT_NAMES:
    pairs = [Arrays(root / f"{x}.npz", root / f"{x}.npz") for x in names]
    pairs += [
      Arrays(root / f"{x}_images.npy", root / f"{x}_labels.npy") for x in names
    ]
    found.append(next((x for x in pairs if x.images.is_file()), None))
  return found


def read_arrays(pair: Arrays, size: int | None) -> Images:
  """Reads the images of one split.

  Args:
    pair: files of images, uint8 `[n, height, width]` or `[n, height, width,
      channels]` of 1 or 3 channels, and of labels `[n]`, integers or strings.
    size: the height and width of the resized images; None: do not resize.

  Raises:
    ValueError: for other arrays, or damaged files.
  """
  images = _images(_load(pair.images, "images"), pair)
  labels, names = read_labels(pair, len(images))
  check_square(images, pair, size)
  if size is not None:
    images = resized(images, size)
  return Images(images, labels, names)


@functools.lru_cache(maxsize=8)
def mapped(pair: Arrays) -> np.ndarray:
  """Maps the images of an npy file to memory, without reading them.

  Raises:
    ValueError: for an npz archive, other arrays, or a damaged file.
  """
  if pair.images == pair.labels:
    names = " and ".join(f"{pair.images.stem}_{x}.npy" for x in Arrays._fields)
    raise ValueError(
      f"{pair.images}: images of an archive cannot be read one by one: save "
      f"{names} by numpy.save, or give --nostream."
    )
  try:
    stored = np.load(pair.images, mmap_mode="r", allow_pickle=False)
  except DAMAGE as error:
    raise _damaged(pair.images, error) from error
  return _images(stored, pair)


def read_labels(pair: Arrays, count: int) -> tuple[np.ndarray, list[str]]:
  """Returns the number `[count]` of each image's class, and their names.

  Raises:
    ValueError: for other arrays, or a damaged file.
  """
  labels = _load(pair.labels, "labels")
  if labels.shape != (count,) or labels.dtype.kind not in "iuSU":
    raise ValueError(
      f"{pair.labels}: labels {labels.dtype} {labels.shape}, must be integers "
      f"or strings [{count}], one for each image."
    )
  names, classes = np.unique(labels, return_inverse=True)
  return classes, [str(name) for name in names]


def _images(images: np.ndarray, pair: Arrays) -> np.ndarray:
  """Returns uint8 `[n, height, width, channels]`, or raises a `ValueError`."""
  if images.ndim == 3:
    images = images[..., None]
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or images.shape[-1] not in (1, 3)
    or 0 in images.shape
  ):
    raise ValueError(
      f"{pair.images}: images {images.dtype} {images.shape}, must be uint8 [n, "
      "height, width, channels] of 1 or 3 channels: convert them."
    )
  return images


def check_square(images: np.ndarray, pair: Arrays, size: int | None) -> None:
  """Raises a `ValueError` for oblong images that will not be resized."""
  if size is None and images.shape[1] != images.shape[2]:
    raise ValueError(
      f"{pair.images}: images of {images.shape[1]} x {images.shape[2]}, must "
      "be square; give --image_size to resize them."
    )


def digest(pair: Arrays) -> str:
  """Returns the SHA-256 of the contents of one split."""
  found = []
  for path in dict.fromkeys(pair):
    with path.open("rb") as file:
      found.append(hashlib.file_digest(file, "sha256").hexdigest())
  return " ".join(found)


def _load(path: Path, name: str) -> np.ndarray:
  try:
    with path.open("rb") as file:
      stored = np.load(file, allow_pickle=False)
      if isinstance(stored, np.ndarray):
        return stored
      if name not in stored:
        raise ValueError(f"has {sorted(stored)}, must have {name!r}")
      return stored[name]
  except DAMAGE as error:
    raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
  reason = " ".join(str(error).split())
  return ValueError(
    f"{path}: cannot be read ({reason}): make it again, by numpy.savez or "
    "numpy.save, of numbers or strings."
  )
