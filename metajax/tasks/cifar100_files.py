"""Reads CIFAR-100 from its official archives (binary or python layout)."""

import contextlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.tasks.cifar100_classes import (
  SUPERCLASSES,
  fine_names,
  superclass_labels,
)
from metajax.tasks.omniglot import data_folder
from metajax.tasks.plain_pickle import read_plain_pickle

SIZE = 32
PIXELS = 3 * SIZE * SIZE
RECORD = 2 + PIXELS  # Superclass, class, pixels.
# Images of each of the 100 classes, by file.
PER_CLASS = {"train": 500, "test": 100}
# Layout -> its files. The archive of a layout is LAYOUT.tar.gz.
FILES = {
  "cifar-100-binary": (
    "train.bin",
    "test.bin",
    "fine_label_names.txt",
    "coarse_label_names.txt",
  ),
  "cifar-100-python": ("train", "test", "meta"),
}
SCRIPT = "download_cifar100.py"
# Errors from reading a damaged archive.
DAMAGE = (tarfile.TarError, EOFError, zlib.error, OSError)


class Cifar100(NamedTuple):
  """The whole data set in memory, the training file first.

  Attributes:
    images: uint8 `[60000, 32, 32, 3]`, red, green and blue.
    fine: int `[60000]`, the class, see `cifar100_classes.fine_names`.
    coarse: int `[60000]`, the superclass, see `cifar100_classes.SUPERCLASSES`.
  """

  images: np.ndarray
  fine: np.ndarray
  coarse: np.ndarray


class _Source(NamedTuple):
  """An archive, or a folder of its unpacked files.

  Attributes:
    read: `(name) -> content` of a file.
    where: `(name) -> place` of a file, for messages.
    fix: the remedy for damaged data, for messages.
  """

  read: Callable[[str], bytes]
  where: Callable[[str], str]
  fix: str


def load_cifar100(data_dir: str | os.PathLike | None = None) -> Cifar100:
  """Reads CIFAR-100, in its binary or its python layout.

  `data_dir` contains `cifar-100-binary/` or `cifar-100-python/`, or their
  files, or an archive such as `cifar-100-binary.tar.gz`. The archive is read
  without unpacking. The reader checks the contents, not a checksum. It runs no
  code from the pickles of the python layout.

  Args:
    data_dir: the folder; `$METAJAX_DATA_DIR` if None.

  Raises:
    ValueError: for damaged data, naming the file.
    FileNotFoundError: if the data are not there; it says how to get them.
  """
  folder = data_folder(data_dir, SCRIPT)
  layout, path = _find(folder)
  decode = _binary if layout == "cifar-100-binary" else _python
  with _opened(layout, path, folder) as source:
    parts = decode(source)
  return Cifar100(*map(np.concatenate, zip(*parts, strict=True)))


def _find(folder: Path) -> tuple[str, Path]:
  """Returns the layout, and the path of the archive or of the files."""
  for layout, names in FILES.items():
    for unpacked in (folder / layout, folder):
      if any((unpacked / name).is_file() for name in names):
        return layout, unpacked
  for layout in FILES:
    archive = folder / f"{layout}.tar.gz"
    if archive.is_file():
      return layout, archive
  fetch = f"`python scripts/{SCRIPT} --data_dir={folder}`"
  for layout in FILES:
    part = folder / f"{layout}.tar.gz.part"
    if part.is_file():
      raise FileNotFoundError(
        f"{part}: the download has not ended; {fetch} goes on with it."
      )
  raise FileNotFoundError(
    f"--data_dir={folder}: neither {' nor '.join(FILES)} is there, in a folder "
    f"or as .tar.gz; {fetch} fetches it."
  )


@contextlib.contextmanager
def _opened(layout: str, path: Path, folder: Path) -> Iterator[_Source]:
  fix = (
    f"fetch it again: remove {path} and run "
    f"`python scripts/{SCRIPT} --data_dir={folder}`."
  )
  if path.is_dir():
    yield _Source(
      lambda name: (path / name).read_bytes(),
      lambda name: f"{path / name}",
      fix,
    )
    return
  try:
    with tarfile.open(path, "r:gz") as archive:

      def read(name: str) -> bytes:
        try:
          member = archive.extractfile(f"{layout}/{name}")
        except KeyError:
          member = None
        if member is None:
          raise FileNotFoundError(f"{layout}/{name} is not in it")
        return member.read()

      yield _Source(read, lambda name: f"{path}: {layout}/{name}", fix)
  except DAMAGE as error:
    raise ValueError(f"{path}: damaged ({error}); {fix}") from error


def _binary(source: _Source) -> list[Cifar100]:
  for name, names in (("fine", fine_names()), ("coarse", list(SUPERCLASSES))):
    file = f"{name}_label_names.txt"
    found = _content(source, file).decode("latin1").split()
    _check_names(found, names, source.where(file), source.fix)
  parts = []
  for name, count in PER_CLASS.items():
    content, where = (
      _content(source, f"{name}.bin"),
      source.where(f"{name}.bin"),
    )
    if len(content) != 100 * count * RECORD:
      raise ValueError(
        f"{where}: {len(content):,} bytes, must be {100 * count * RECORD:,}; "
        f"{source.fix}"
      )
    rows = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    parts.append(
      _checked(rows[:, 2:], rows[:, 1], rows[:, 0], count, where, source.fix)
    )
  return parts


def _python(source: _Source) -> list[Cifar100]:
  meta = _fields(source, "meta", "fine_label_names", "coarse_label_names")
  for found, names in zip(
    meta, (fine_names(), list(SUPERCLASSES)), strict=True
  ):
    _check_names(found, names, source.where("meta"), source.fix)
  parts = []
  for name, count in PER_CLASS.items():
    fields = _fields(source, name, "data", "fine_labels", "coarse_labels")
    try:
      rows, fine, coarse = (np.asarray(x) for x in fields)
    except ValueError:  # Lists of lists of several lengths.
      rows = fine = coarse = np.zeros(0)
    where = source.where(name)
    parts.append(_checked(rows, fine, coarse, count, where, source.fix))
  return parts


def _content(source: _Source, name: str) -> bytes:
  try:
    return source.read(name)
  except FileNotFoundError as error:
    raise ValueError(
      f"{source.where(name)}: is not there; {source.fix}"
    ) from error


def _fields(source: _Source, name: str, *keys: str) -> list[Any]:
  """Reads values of a pickled dictionary."""
  content = _content(source, name)
  try:
    found = read_plain_pickle(content)
  except ValueError as error:
    raise ValueError(f"{source.where(name)}: {error}; {source.fix}") from error
  found = found if isinstance(found, dict) else {}
  missing = [key for key in keys if key not in found]
  if missing:
    raise ValueError(f"{source.where(name)}: has no {missing[0]}; {source.fix}")
  return [found[key] for key in keys]


def _check_names(found: Any, names: list[str], where: str, fix: str) -> None:
  if found == names:
    return
  found = found if isinstance(found, list) else []
  differ = next(
    (f"{a!r} for {b!r}" for a, b in zip(found, names, strict=False) if a != b),
    f"{len(found)} of them for {len(names)}",
  )
  raise ValueError(
    f"{where}: not the names of the classes of CIFAR-100 in their order "
    f"({differ}); {fix}"
  )


def _checked(
  rows: np.ndarray,
  fine: np.ndarray,
  coarse: np.ndarray,
  count: int,
  where: str,
  fix: str,
) -> Cifar100:
  """Returns the images of one file. Raises a `ValueError` if one is wrong."""
  total = 100 * count
  if (
    rows.dtype != np.uint8
    or rows.shape != (total, PIXELS)
    or any(
      x.shape != (total,) or x.dtype.kind not in "iu" for x in (fine, coarse)
    )
  ):
    raise ValueError(
      f"{where}: pixels {rows.dtype} {rows.shape}, classes {fine.shape} and "
      f"superclasses {coarse.shape}, must be uint8 {(total, PIXELS)} and "
      f"{(total,)}; {fix}"
    )
  right = (fine >= 0) & (fine < 100)
  right &= np.asarray(superclass_labels())[np.where(right, fine, 0)] == coarse
  if not right.all():
    first = int(np.argmin(right))
    raise ValueError(
      f"{where}: image {first} is of class {fine[first]} and superclass "
      f"{coarse[first]}, which is none of CIFAR-100; {fix}"
    )
  counts = np.bincount(fine, minlength=100)
  if np.any(counts != count):
    label = int(np.argmax(counts != count))
    raise ValueError(
      f"{where}: {counts[label]} images of class {fine_names()[label]!r}, must "
      f"be {count}; {fix}"
    )
  images = rows.reshape(total, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
  images = np.ascontiguousarray(images)
  return Cifar100(images, fine.astype(int), coarse.astype(int))
