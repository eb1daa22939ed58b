"""Few-shot tasks from a folder of images, one sub-folder for each class."""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax.tasks.few_shot import few_shot_episodes
from metajax.types import Splits

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# The folders of classes set apart, by the names in use.
SPLIT_FOLDERS = (("train",), ("val", "valid", "validation"), ("test",))
# The shares of training and validation where no classes are set apart.
TRAIN, VALIDATION = 0.64, 0.16


class Images(NamedTuple):
  """The images of some classes.

  Attributes:
    images: uint8 `[classes, most, size, size, channels]`; a class of fewer
      images than `most` is filled up with zeros.
    counts: int32 `[classes]`, how many images each has.
    names: the classes' folders.
  """

  images: np.ndarray
  counts: np.ndarray
  names: list[str]


def image_folder(
  data_dir: str | os.PathLike,
  *,
  ways: int = 5,
  shots: int = 1,
  query_shots: int = 1,
  eval_ways: int | None = None,
  eval_query_shots: int | None = None,
  split_seed: int = 0,
  num_rotations: int = 1,
  image_size: int = 84,
) -> Splits:
  """N-way K-shot tasks of the images in a folder, in three disjoint splits.

  Either the classes are set apart already, as miniImageNet's are::

    data_dir/train/CLASS/*.jpg
    data_dir/val/CLASS/*.jpg
    data_dir/test/CLASS/*.jpg

  or they are not, `data_dir/CLASS/*.jpg`, and 64 / 16 / 20 percent of them are
  drawn for training, validation and test. All images are held in memory.

  Args:
    data_dir: the folder.
    ways: N, classes per task.
    shots: K, support images per class.
    query_shots: query images per class.
    eval_ways: N for validation and test; `ways` if None.
    eval_query_shots: query images there; `query_shots` if None.
    split_seed: the seed of the split that is drawn.
    num_rotations: see `few_shot_episodes`.
    image_size: height and width in pixels to which all images are resized.

  Returns:
    Task families for training, validation and test. Images have one channel if
    all of them are grey, else three.

  Raises:
    ValueError: for files that are no images, and for folders too few or too
      small for such tasks, by their names.
  """
  if image_size < 1:
    raise ValueError(f"image_size={image_size}: must be 1 or more.")
  eval_query_shots = (
    query_shots if eval_query_shots is None else eval_query_shots
  )
  splits = _read_splits(Path(data_dir), split_seed, image_size)
  families = []
  eval_ways = ways if eval_ways is None else eval_ways
  for data, name in zip(splits, Splits._fields, strict=True):
    training = name == "train"
    try:
      family = few_shot_episodes(
        jnp.asarray(data.images),
        ways if training else eval_ways,
        shots,
        query_shots if training else eval_query_shots,
        num_rotations,
        jnp.asarray(data.counts),
      )
    except ValueError as error:
      smallest = data.names[int(np.argmin(data.counts))]
      raise ValueError(
        f"--data_dir={data_dir}: {error} (The {name} split has "
        f"{len(data.names)} classes; the smallest is {smallest}.)"
      ) from error
    families.append(family)
  return Splits(*families)


def fingerprint(data_dir: str | os.PathLike, split_seed: int = 0) -> str:
  """Tells a folder from others: its name, and a digest of its files' names."""
  root = Path(data_dir)
  digest = hashlib.sha256()
  for classes in _split(root, split_seed):
    for folder in classes:
      names = [path.name for path in _files(folder)]
      digest.update(repr((str(folder.relative_to(root)), names)).encode())
  return f"{root.resolve().name}-{digest.hexdigest()[:8]}"


def is_image_folder(data_dir: str | os.PathLike | None) -> bool:
  """Tells whether a folder is one that `image_folder` can read."""
  if not data_dir or not Path(data_dir).is_dir():
    return False
  return any(_split_folders(Path(data_dir))) or bool(_classes(Path(data_dir)))


def read_images(classes: list[Path], size: int) -> Images:
  """Reads the images of each class's folder.

  Raises:
    ValueError: for a file that is no image.
  """
  # Only decoding needs these.
  from PIL import Image, UnidentifiedImageError
  from tqdm import tqdm

  files = [_files(folder) for folder in classes]
  paths = [path for group in files for path in group]
  decoded = []
  for path in tqdm(paths, "reading images", disable=None, unit="image"):
    try:
      with Image.open(path) as file:
        image: Image.Image = file
        if image.mode in ("I", "F"):
          raise ValueError(
            f"{path}: pixels of 32 bits, must be of 8 or 16: convert it."
          )
        if image.mode.startswith("I;16"):  # Which `convert` would cut at 255.
          image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey = image.mode in ("1", "L", "LA")
        small = image.convert("L" if grey else "RGB").resize(
          (size, size), Image.Resampling.LANCZOS
        )
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
      raise ValueError(f"{path} is no image: remove it. ({error})") from error
    decoded.append(np.asarray(small, np.uint8).reshape(size, size, -1))
  channels = max(image.shape[-1] for image in decoded)
  counts = np.array([len(group) for group in files], np.int32)
  images = np.zeros((len(files), counts.max(), size, size, channels), np.uint8)
  rest = iter(decoded)
  for row, count in zip(images, counts, strict=True):
    for i in range(count):
      row[i] = next(rest)  # A grey image has the same value in all channels.
  return Images(images, counts, [str(folder) for folder in classes])


# Training and test may differ in their tasks, but not in their images.
@functools.lru_cache(maxsize=1)
def _read_splits(data_dir: Path, seed: int, size: int) -> list[Images]:
  splits = [read_images(classes, size) for classes in _split(data_dir, seed)]
  if len({s.images.shape[-1] for s in splits}) > 1:
    splits = [_in_colour(s) for s in splits]
  return splits


def _in_colour(data: Images) -> Images:
  shape = (*data.images.shape[:-1], 3)
  return data._replace(images=np.broadcast_to(data.images, shape))


def _split(root: Path, seed: int) -> list[list[Path]]:
  """The folders of the classes for training, validation and test."""
  folders = _split_folders(root)
  if any(folders):
    splits = [_classes(folder) if folder else [] for folder in folders]
  else:
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


def _classes(folder: Path) -> list[Path]:
  if not folder.is_dir():
    return []
  return sorted(x for x in folder.iterdir() if x.is_dir() and _files(x))


def _files(folder: Path) -> list[Path]:
  return sorted(
    path
    for path in folder.iterdir()
    if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
  )
