"""Finds and reads the image files of class folders."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
BACKGROUND = 255  # White, behind transparent pixels.
# The modes of pillow that can be transparent. P is a palette.
TRANSPARENT = ("P", "PA", "LA", "RGBA", "RGBa")
LUMINANCE = np.array([0.299, 0.587, 0.114])


class Images(NamedTuple):
  """The images of some classes.

  Attributes:
    images: uint8 `[n, size, size, channels]`, class by class.
    labels: int `[n]`, the number of each image's class.
    names: the names of the classes.
  """

  images: np.ndarray
  labels: np.ndarray
  names: list[str]


def read_images(classes: Sequence[Path], size: int) -> Images:
  """Reads the images of each class's folder.

  Raises:
    ValueError: for a file that is not an image.
  """
  return read_classes([(str(x), images_in(x)) for x in classes], size)


def read_classes(
  classes: Sequence[tuple[str, Sequence[Path]]], size: int
) -> Images:
  """Reads the files of each class, a pair of a name and paths.

  Raises:
    ValueError: for a file that is not an image.
  """
  images = read_files([path for _, files in classes for path in files], size)
  labels = np.repeat(np.arange(len(classes)), [len(x) for _, x in classes])
  return Images(images, labels, [name for name, _ in classes])


def read_files(paths: Sequence[Path], size: int) -> np.ndarray:
  """Returns images as uint8 `[n, size, size, channels]`.

  They have one channel if all of them are grey, else three.

  Raises:
    ValueError: for a file that is not an image.
  """
  from tqdm import tqdm  # Only reading needs it.

  decoded = [
    read_file(path, size)
    for path in tqdm(paths, "reading images", disable=None, unit="image")
  ]
  channels = max(image.shape[-1] for image in decoded)
  images = np.empty((len(decoded), size, size, channels), np.uint8)
  for row, image in zip(images, decoded, strict=True):
    row[:] = image  # A grey image has the same value in all channels.
  return images


def resized(images: np.ndarray, size: int) -> np.ndarray:
  """Resizes uint8 `[n, height, width, channels]` like `read_files`."""
  from PIL import Image  # Only resizing needs it.

  if images.shape[1:3] == (size, size):
    return images
  grey = images.shape[-1] == 1
  made = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
  for row, pixels in zip(made, images, strict=True):
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    small = image.resize((size, size), Image.Resampling.LANCZOS)
    row[:] = np.asarray(small).reshape(row.shape)
  return made


def in_channels(images: np.ndarray, channels: int) -> np.ndarray:
  """Makes grey images coloured, or coloured images grey by their luminance.

  Args:
    images: uint8 `[..., height, width, 1 or 3]`.
    channels: 1 or 3.
  """
  if images.shape[-1] == channels:
    return images
  if channels > 1:
    return np.broadcast_to(images, (*images.shape[:-1], channels))
  grey = np.empty((*images.shape[:-1], 1), np.uint8)
  for place in np.ndindex(images.shape[:-3]):  # One by one for memory.
    grey[place][..., 0] = np.rint(images[place] @ LUMINANCE)
  return grey


def read_file(path: Path, size: int) -> np.ndarray:
  """Returns uint8 `[size, size, channels]`. A grey image has one channel.

  Raises:
    ValueError: for a file that is not an image.
  """
  from PIL import Image  # Only decoding needs it.

  def small(image: Any) -> Any:
    if image.mode in ("I", "F"):
      return None
    whole = _upright_and_opaque(image)
    return whole.resize((size, size), Image.Resampling.LANCZOS)

  found = _of_file(path, small)
  if found is None:
    raise ValueError(
      f"{path}: pixels of 32 bits, must be of 8 or 16: convert it."
    )
  return np.asarray(found, np.uint8).reshape(size, size, -1)


def is_coloured(path: Path) -> bool:
  """Tells from the head of a file whether `read_file` returns three channels.

  Raises:
    ValueError: for a file that is not an image.
  """
  return _of_file(path, lambda image: not _is_grey(image.mode))


def _of_file(path: Path, function: Callable[[Any], Any]) -> Any:
  from PIL import Image  # Only decoding needs it.

  try:
    with Image.open(path) as image:
      return function(image)
  except PermissionError as error:
    raise ValueError(
      f"{path}: permission denied: get the permission to read it."
    ) from error
  # Pillow and its decoders raise errors of many kinds.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(f"{path} is no image: remove it. ({reason})") from error


def _is_grey(mode: str) -> bool:
  return mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16")


def _upright_and_opaque(image: Any) -> Any:
  """Returns a pillow image of mode L or RGB, turned as its EXIF tag says."""
  from PIL import Image, ImageOps

  image = ImageOps.exif_transpose(image)
  clear = image.info.get("transparency")
  if image.mode.startswith("I;16"):  # `convert` would cut the values at 255.
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if clear is not None:
      grey[values == clear] = BACKGROUND
    return Image.fromarray(grey)
  mode = "L" if _is_grey(image.mode) else "RGB"
  if clear is not None or image.mode in TRANSPARENT:
    ground = Image.new("RGBA", image.size, (BACKGROUND,) * 4)
    image = Image.alpha_composite(ground, image.convert("RGBA"))
  return image.convert(mode)


def folders_in(parent: Path) -> list[Path]:
  """Returns the folders in a folder, without hidden ones."""
  if not parent.is_dir():
    return []
  with os.scandir(parent) as entries:
    return sorted(
      Path(entry.path)
      for entry in entries
      if entry.is_dir() and not entry.name.startswith(".")
    )


def images_in(folder: Path) -> list[Path]:
  """Returns the images directly in a folder, by suffix, without hidden ones."""
  with os.scandir(folder) as entries:
    return sorted(
      Path(entry.path)
      for entry in entries
      if entry.name.lower().endswith(SUFFIXES)
      and not entry.name.startswith(".")
      and not entry.is_dir()
    )
