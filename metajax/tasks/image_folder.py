"""Few-shot tasks from images on disk, in several common layouts."""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from metajax.numerics import check_counts
from metajax.tasks.class_folders import has_class_folders, in_class_folders
from metajax.tasks.form import Number
from metajax.tasks.image_arrays import (
  array_files,
  digest,
  has_arrays,
  mapped,
  read_arrays,
)
from metajax.tasks.image_files import read_classes
from metajax.tasks.image_lists import ClassFiles, has_list, listed
from metajax.tasks.image_splits import ImageSplits, episodes, of_one_depth
from metajax.tasks.standardized import channels_of
from metajax.tasks.stored_images import stored_arrays, stored_files
from metajax.types import Splits

SIZE = 84  # Default size in pixels of images in files.


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
  stream: bool = False,
  workers: int = 0,
) -> Splits:
  """N-way K-shot tasks of the images in a folder, in three disjoint splits.

  The folder may define the splits, in one of four layouts::

    data_dir/train/CLASS/*.jpg        and val/ and test/ likewise
    data_dir/train.csv, images/*.jpg  columns filename and label, and val.csv
                                      and test.csv, as miniImageNet's are
    data_dir/splits.json, CLASS/*.jpg {"train": [CLASS, ...], "val": ...}
    data_dir/train.npz                images and labels, and val.npz and
                                      test.npz, or train_images.npy and so on

  Otherwise the layout is `data_dir/CLASS/*.jpg`, and the function draws
  64 / 16 / 20 percent of the classes for training, validation and test. Classes
  may differ in size. Memory holds each image once. Images are turned as their
  EXIF tags say, and transparent pixels get a white background. The function
  reads the images again if files have changed. It ignores hidden folders and
  files, whose names begin with a dot.

  Args:
    data_dir: the folder.
    ways: N, classes per task, or `(low, high)`, see `few_shot_episodes`.
    shots: K, support images per class, or `(low, high)`.
    query_shots: query images per class, or `(low, high)`.
    eval_ways: N for validation and test; `ways` if None.
    eval_query_shots: query images for validation and test; `query_shots` if
      None.
    split_seed: the seed for drawing the splits.
    num_rotations: see `few_shot_episodes`.
    image_size: height and width in pixels of the resized images; None: 84, but
      arrays keep their size.
    small_classes: see `few_shot_episodes`.
    standardize: if True, channels have mean 0 and deviation 1 over the training
      classes; if False, pixels are in [0, 1].
    stream: if True, the images stay on the disk, and tasks are read from there
      when they are drawn (see `types.Stream`); if False, memory holds them all.
    workers: see `episodes` of `image_splits`.

  Returns:
    Task families for training, validation and test. Images have one channel if
    all of them are grey, else three.

  Raises:
    ValueError: for files that are not images, for images in a folder within the
      folder of a class, for damaged lists or arrays, and for too few or too
      small classes. The message names the file or the class.
  """
  images = read_image_folder(data_dir, image_size, split_seed, stream)
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
    workers=workers,
  )


def read_image_folder(
  data_dir: str | os.PathLike,
  image_size: int | None = None,
  split_seed: int = 0,
  stored: bool = False,
) -> ImageSplits:
  """Reads the images of the three splits of `image_folder`.

  With `stored`, the images are `StoredImages`, and are read later.

  Raises:
    ValueError: see `image_folder`.
  """
  if image_size is not None:
    check_counts(image_size=image_size)
  root = Path(data_dir)
  if (arrays := array_files(root)) is not None:
    if stored:
      splits = stored_arrays(arrays, image_size)
    else:
      splits = [read_arrays(pair, image_size) for pair in arrays]
    sizes = sorted({data.images.shape[1] for data in splits})
    if len(sizes) > 1:
      raise ValueError(
        f"--data_dir={root}: images of {sizes} pixels, must be of one size; "
        "give --image_size to resize them."
      )
    return of_one_depth(splits)
  stamped = [tuple(map(_stamped, x)) for x in _classes(root, split_seed)]
  if stored:
    return ImageSplits(*stored_files(stamped, image_size or SIZE))
  return _read_splits(tuple(stamped), image_size or SIZE)


def bytes_in_memory(
  data_dir: str | os.PathLike, image_size: int | None = None
) -> int:
  """Returns how many bytes the images of `image_folder` take in memory.

  It reads none of them. Those in files count as coloured ones. Those in npz
  archives do not count, because they cannot stay on the disk.
  """
  root, size = Path(data_dir), image_size
  if (arrays := array_files(root)) is not None:
    if any(pair.images == pair.labels for pair in arrays):
      return 0
    shapes = [mapped(pair).shape for pair in arrays]
    return sum(n * c * (size or h) * (size or w) for n, h, w, c in shapes)
  classes = (x for split in _classes(root, 0) for x in split)
  return sum(len(x.files) for x in classes) * 3 * (size or SIZE) ** 2


def fingerprint(data_dir: str | os.PathLike, split_seed: int = 0) -> str:
  """Returns a text that identifies a folder: its name, and a digest.

  The digest is of the names and sizes of the files, so a copy of the folder has
  the same digest. For arrays, the digest is of their contents.
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
  """Tells whether `image_folder` can read a folder."""
  if not data_dir or not Path(data_dir).is_dir():
    return False
  root = Path(data_dir)
  return has_arrays(root) or has_list(root) or has_class_folders(root)


def _classes(root: Path, seed: int) -> list[list[ClassFiles]]:
  found = listed(root)
  return in_class_folders(root, seed) if found is None else found


class _Stamped(NamedTuple):
  """A class, and the sizes and times of its files."""

  name: str
  files: tuple[tuple[Path, int, int, int], ...]


def _stamped(images: ClassFiles) -> _Stamped:
  files = []
  for path in images.files:
    try:
      stat = path.stat()
    except OSError as error:  # A broken link.
      raise ValueError(f"{path} is no image: remove it. ({error})") from error
    # A copy may keep the time of modification, but not the time of change.
    times = stat.st_mtime_ns, stat.st_ctime_ns
    files.append((path.absolute(), stat.st_size, *times))
  return _Stamped(images.name, tuple(files))


# Training and test may use different tasks of the same images. The cache holds
# two folders, one for training and another one for test.
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
