"""Few-shot tasks from a folder of images, one sub-folder for each class."""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.tasks.few_shot import labelled_episodes
from metajax.tasks.form import Number
from metajax.tasks.image_files import (
  Images,
  folders_in,
  images_in,
  read_images,
)
from metajax.types import Splits

# The folders of classes set apart, by the names in use.
SPLIT_FOLDERS = (("train",), ("val", "valid", "validation"), ("test",))
# The shares of training and validation where no classes are set apart.
TRAIN, VALIDATION = 0.64, 0.16


def image_folder(
  data_dir: str | os.PathLike,
  *,
  ways: Number = 5,
  shots: Number = 1,
  query_shots: Number = 1,
  eval_ways: Number | None = None,
  eval_query_shots: Number | None = None,
  split_seed: int = 0,
  num_rotations: int = 1,
  image_size: int = 84,
  small_classes: bool = False,
) -> Splits:
  """N-way K-shot tasks of the images in a folder, in three disjoint splits.

  Either the classes are set apart already, as miniImageNet's are::

    data_dir/train/CLASS/*.jpg
    data_dir/val/CLASS/*.jpg
    data_dir/test/CLASS/*.jpg

  or they are not, `data_dir/CLASS/*.jpg`, and 64 / 16 / 20 percent of them are
  drawn for training, validation and test. Classes may differ in size. All
  images are held in memory, each once: turned upright as their EXIF tags say,
  what is transparent in front of white. They are read again when files have
  changed. Hidden folders and files, whose names begin with a dot, are left out.

  Args:
    data_dir: the folder.
    ways: N, classes per task, or `(low, high)`, see `few_shot_episodes`.
    shots: K, support images per class, or `(low, high)`.
    query_shots: query images per class, or `(low, high)`.
    eval_ways: N for validation and test; `ways` if None.
    eval_query_shots: query images there; `query_shots` if None.
    split_seed: the seed of the split that is drawn.
    num_rotations: see `few_shot_episodes`.
    image_size: height and width in pixels to which all images are resized.
    small_classes: see `few_shot_episodes`.

  Returns:
    Task families for training, validation and test. Images have one channel if
    all of them are grey, else three.

  Raises:
    ValueError: for files that are no images, for folders within those of
      classes, and for folders too few or too small for such tasks, by their
      names.
  """
  if image_size < 1:
    raise ValueError(f"image_size={image_size}: must be 1 or more.")
  eval_query_shots = (
    query_shots if eval_query_shots is None else eval_query_shots
  )
  stamped = [
    tuple(map(_stamped, classes))
    for classes in _split(Path(data_dir), split_seed)
  ]
  splits = _read_splits(tuple(stamped), image_size)
  families = []
  eval_ways = ways if eval_ways is None else eval_ways
  for data, name in zip(splits, Splits._fields, strict=True):
    training = name == "train"
    try:
      family = labelled_episodes(
        data.images,
        data.labels,
        ways if training else eval_ways,
        shots,
        query_shots if training else eval_query_shots,
        num_rotations,
        small_classes=small_classes,
      )
    except ValueError as error:
      smallest = data.names[int(np.argmin(np.bincount(data.labels)))]
      raise ValueError(
        f"--data_dir={data_dir}: {error} (The {name} split has "
        f"{len(data.names)} classes; the smallest is {smallest}.)"
      ) from error
    families.append(family)
  return Splits(*families)


def fingerprint(data_dir: str | os.PathLike, split_seed: int = 0) -> str:
  """Tells a folder from others: its name, and a digest of its files.

  The digest is of their names and sizes, so that a copy has the same.
  """
  root = Path(data_dir)
  digest = hashlib.sha256()
  for classes in _split(root, split_seed):
    for folder in classes:
      files = [(path.name, size) for path, size, *_ in _stamped(folder).files]
      digest.update(repr((str(folder.relative_to(root)), files)).encode())
  return f"{root.resolve().name}-{digest.hexdigest()[:8]}"


def is_image_folder(data_dir: str | os.PathLike | None) -> bool:
  """Tells whether a folder is one that `image_folder` can read."""
  if not data_dir or not Path(data_dir).is_dir():
    return False
  return any(_split_folders(Path(data_dir))) or bool(_classes(Path(data_dir)))


class _Stamped(NamedTuple):
  """A class's folder, and what tells whether its files have changed."""

  folder: Path
  files: tuple[tuple[Path, int, int, int], ...]


def _stamped(folder: Path) -> _Stamped:
  folder, files = folder.resolve(), []
  for path in images_in(folder):
    try:
      stat = path.stat()
    except OSError as error:  # A link to nowhere.
      raise ValueError(f"{path} is no image: remove it. ({error})") from error
    # A copy may keep the first time, but not the second.
    files.append((path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
  return _Stamped(folder, tuple(files))


# Training and test may differ in their tasks, but not in their images.
@functools.lru_cache(maxsize=1)
def _read_splits(
  splits: tuple[tuple[_Stamped, ...], ...], size: int
) -> list[Images]:
  read = [read_images([x.folder for x in classes], size) for classes in splits]
  if len({x.images.shape[-1] for x in read}) > 1:
    read = [_in_colour(x) for x in read]
  return read


def _in_colour(data: Images) -> Images:
  shape = (*data.images.shape[:-1], 3)
  return data._replace(images=np.broadcast_to(data.images, shape))


def _split(root: Path, seed: int) -> list[list[Path]]:
  """The folders of the classes for training, validation and test."""
  folders = _split_folders(root)
  if any(folders):
    _refuse_nested(*(root / name for names in SPLIT_FOLDERS for name in names))
    splits = [_classes(folder) if folder else [] for folder in folders]
  else:
    _refuse_nested(root)
    classes = _classes(root)
    order = np.random.default_rng(seed).permutation(len(classes))
    bounds = [round(len(order) * x) for x in (TRAIN, TRAIN + VALIDATION)]
    splits = [[classes[i] for i in part] for part in np.split(order, bounds)]
  for names, classes in zip(SPLIT_FOLDERS, splits, strict=True):
    if not classes:
      raise ValueError(
        f"--data_dir={root}: no classes for the split {names[-1]!r}; give "
        f"folders of images {root}/CLASS/, or {root}/{names[0]}/CLASS/."
      )
  return splits


def _split_folders(root: Path) -> list[Path | None]:
  return [
    next((root / name for name in names if _classes(root / name)), None)
    for names in SPLIT_FOLDERS
  ]


def _refuse_nested(*parents: Path) -> None:
  """Raises a `ValueError` for images deeper than the folders of classes."""
  for parent in parents:
    for folder in folders_in(parent):
      for path, names, _ in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        if Path(path) != folder and images_in(Path(path)):
          raise ValueError(
            f"{path}: images in a folder within {folder}, must be directly in "
            f"the folders of classes, {parent}/CLASS/: move them."
          )


def _classes(parent: Path) -> list[Path]:
  return [folder for folder in folders_in(parent) if images_in(folder)]
