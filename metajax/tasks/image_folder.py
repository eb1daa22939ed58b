"""Few-shot tasks from images on disk, in the layouts that people have."""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from metajax.tasks.class_folders import has_class_folders, in_class_folders
from metajax.tasks.form import Number
from metajax.tasks.image_arrays import (
  array_files,
  digest,
  has_arrays,
  read_arrays,
)
from metajax.tasks.image_files import read_classes
from metajax.tasks.image_lists import ClassFiles, has_list, listed
from metajax.tasks.image_splits import ImageSplits, episodes, of_one_depth
from metajax.tasks.standardized import channels_of
from metajax.types import Splits

SIZE = 84  # Of images in files, in pixels, if no other is asked for.


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
  image_size: int | None = None,
  small_classes: bool = False,
  standardize: bool = False,
) -> Splits:
  """N-way K-shot tasks of the images in a folder, in three disjoint splits.

  Either the classes are set apart already, in one of four ways::

    data_dir/train/CLASS/*.jpg        and val/ and test/ likewise
    data_dir/train.csv, images/*.jpg  columns filename and label, and val.csv
                                      and test.csv, as miniImageNet's are
    data_dir/splits.json, CLASS/*.jpg {"train": [CLASS, ...], "val": ...}
    data_dir/train.npz                images and labels, and val.npz and
                                      test.npz, or train_images.npy and so on

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
    image_size: height and width in pixels to which all images are resized;
      None: 84, but arrays stay as they are.
    small_classes: see `few_shot_episodes`.
    standardize: whether channels get mean 0 and deviation 1, by the numbers of
      the training classes; else pixels are in [0, 1].

  Returns:
    Task families for training, validation and test. Images have one channel if
    all of them are grey, else three.

  Raises:
    ValueError: for files that are no images, for folders within those of
      classes, for lists or arrays that are damaged, and for classes too few or
      too small for such tasks, by their names.
  """
  images = read_image_folder(data_dir, image_size, split_seed)
  return episodes(
    images,
    f"--data_dir={data_dir}",
    ways=ways,
    shots=shots,
    query_shots=query_shots,
    eval_ways=eval_ways,
    eval_query_shots=eval_query_shots,
    num_rotations=num_rotations,
    small_classes=small_classes,
    channels=channels_of(images.train.images) if standardize else None,
  )


def read_image_folder(
  data_dir: str | os.PathLike,
  image_size: int | None = None,
  split_seed: int = 0,
) -> ImageSplits:
  """Reads the images of the three splits of `image_folder`.

  Raises:
    ValueError: see `image_folder`.
  """
  if image_size is not None and image_size < 1:
    raise ValueError(f"image_size={image_size}: must be 1 or more.")
  root = Path(data_dir)
  if (arrays := array_files(root)) is not None:
    splits = [read_arrays(pair, image_size) for pair in arrays]
    sizes = sorted({data.images.shape[1] for data in splits})
    if len(sizes) > 1:
      raise ValueError(
        f"--data_dir={root}: images of {sizes} pixels, must be of one size; "
        "give --image_size to resize them."
      )
    return of_one_depth(splits)
  stamped = [tuple(map(_stamped, x)) for x in _classes(root, split_seed)]
  return _read_splits(tuple(stamped), image_size or SIZE)


def fingerprint(data_dir: str | os.PathLike, split_seed: int = 0) -> str:
  """Tells a folder from others: its name, and a digest of its files.

  The digest is of their names and sizes, so that a copy has the same; of arrays
  it is of their contents.
  """
  root = Path(data_dir)
  found = hashlib.sha256()
  if (arrays := array_files(root)) is not None:
    for pair in arrays:
      found.update(digest(pair).encode())
  else:
    for classes in _classes(root, split_seed):
      for images in classes:
        files = [(x.name, size) for x, size, *_ in _stamped(images).files]
        found.update(repr((images.name, files)).encode())
  return f"{root.resolve().name}-{found.hexdigest()[:8]}"


def is_image_folder(data_dir: str | os.PathLike | None) -> bool:
  """Tells whether a folder is one that `image_folder` can read."""
  if not data_dir or not Path(data_dir).is_dir():
    return False
  root = Path(data_dir)
  return has_arrays(root) or has_list(root) or has_class_folders(root)


def _classes(root: Path, seed: int) -> list[list[ClassFiles]]:
  found = listed(root)
  return in_class_folders(root, seed) if found is None else found


class _Stamped(NamedTuple):
  """A class, and what tells whether its files have changed."""

  name: str
  files: tuple[tuple[Path, int, int, int], ...]


def _stamped(images: ClassFiles) -> _Stamped:
  files = []
  for path in images.files:
    try:
      stat = path.stat()
    except OSError as error:  # A link to nowhere.
      raise ValueError(f"{path} is no image: remove it. ({error})") from error
    # A copy may keep the first time, but not the second.
    times = stat.st_mtime_ns, stat.st_ctime_ns
    files.append((path.absolute(), stat.st_size, *times))
  return _Stamped(images.name, tuple(files))


# Training and test may differ in their tasks, but not in their images. Two, for
# a training on one folder and a test on another.
@functools.lru_cache(maxsize=2)
def _read_splits(
  splits: tuple[tuple[_Stamped, ...], ...], size: int
) -> ImageSplits:
  return of_one_depth(
    [
      read_classes([(x.name, [f[0] for f in x.files]) for x in classes], size)
      for classes in splits
    ]
  )
