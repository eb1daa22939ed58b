"""Builds three families of tasks from the images of three sets of classes."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.tasks.few_shot import labelled_episodes
from metajax.tasks.form import Number
from metajax.tasks.image_files import Images, resized
from metajax.tasks.standardized import Channels, standardized
from metajax.types import Splits, TaskFamily

LUMINANCE = np.array([0.299, 0.587, 0.114])


class ImageSplits(NamedTuple):
  """The images of the classes for training, validation and test."""

  train: Images
  validation: Images
  test: Images


def episodes(
  images: ImageSplits,
  where: str,
  *,
  ways: Number = 5,
  shots: Number = 1,
  query_shots: Number = 1,
  eval_ways: Number | None = None,
  eval_query_shots: Number | None = None,
  num_rotations: int = 1,
  small_classes: bool = False,
  channels: Channels | None = None,
) -> Splits:
  """N-way K-shot tasks of images in three disjoint splits.

  Args:
    images: uint8 images. They stay uint8 on the device.
    where: the source of the images, for messages.
    ways: N, classes per task, or `(low, high)`, see `few_shot_episodes`.
    shots: K, support images per class, or `(low, high)`.
    query_shots: query images per class, or `(low, high)`.
    eval_ways: N for validation and test; `ways` if None.
    eval_query_shots: query images for validation and test; `query_shots` if
      None.
    num_rotations: see `few_shot_episodes`.
    small_classes: see `few_shot_episodes`.
    channels: the mean and deviation that standardise the images; None: pixels
      are in [0, 1].

  Returns:
    Task families for training, validation and test.

  Raises:
    ValueError: if the images do not suffice. The message names the split.
  """
  eval_ways = ways if eval_ways is None else eval_ways
  if eval_query_shots is None:
    eval_query_shots = query_shots
  options: dict[str, Any] = {
    "shots": shots,
    "num_rotations": num_rotations,
    "small_classes": small_classes,
    "channels": channels,
  }
  families = []
  for data, split in zip(images, Splits._fields, strict=True):
    numbers = (eval_ways, eval_query_shots)
    if split == "train":
      numbers = (ways, query_shots)
    families.append(split_episodes(data, where, split, *numbers, **options))
  return Splits(*families)


def split_episodes(
  data: Images,
  where: str,
  split: str,
  ways: Number,
  query_shots: Number,
  *,
  shots: Number,
  num_rotations: int = 1,
  small_classes: bool = False,
  channels: Channels | None = None,
) -> TaskFamily:
  """N-way K-shot tasks of one split; see `episodes`.

  Raises:
    ValueError: if the images do not suffice. The message names the split.
  """
  try:
    family = labelled_episodes(
      data.images,
      data.labels,
      ways,
      shots,
      query_shots,
      num_rotations,
      small_classes=small_classes,
    )
  except ValueError as error:
    smallest = data.names[int(np.argmin(np.bincount(data.labels)))]
    raise ValueError(
      f"{where}: {error} (The {split} split has {len(data.names)} classes; "
      f"the smallest is {smallest}.)"
    ) from error
  return family if channels is None else standardized(family, channels)


def digest(splits: ImageSplits) -> str:
  """Returns eight hexadecimal digits that identify the images."""
  found = hashlib.sha256()
  for data in splits:
    found.update(np.ascontiguousarray(data.images).data)
    found.update(data.labels.astype(np.int64).data)
  return found.hexdigest()[:8]


def of_one_depth(splits: Sequence[Images]) -> ImageSplits:
  """Makes all images coloured if one split has coloured images."""
  channels = max(data.images.shape[-1] for data in splits)
  return ImageSplits(*(with_channels(data, channels) for data in splits))


def resized_splits(splits: ImageSplits, size: int) -> ImageSplits:
  """Resizes all images to a height and width in pixels."""
  return ImageSplits(
    *(x._replace(images=resized(x.images, size)) for x in splits)
  )


def with_channels(data: Images, channels: int) -> Images:
  """Makes grey images coloured, or coloured images grey by their luminance."""
  images = data.images
  if images.shape[-1] == channels:
    return data
  if channels == 1:
    grey = np.empty((*images.shape[:-1], 1), np.uint8)
    for row, image in zip(grey, images, strict=True):  # One by one for memory.
      row[..., 0] = np.rint(image @ LUMINANCE)
    images = grey
  else:
    images = np.broadcast_to(images, (*images.shape[:-1], channels))
  return data._replace(images=images)
