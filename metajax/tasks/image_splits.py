"""Builds three families of tasks from the images of three sets of classes."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.tasks.few_shot import labelled_episodes
from metajax.tasks.form import Number
from metajax.tasks.image_files import Images, in_channels, resized
from metajax.tasks.standardized import Channels, standardized
from metajax.tasks.stored_images import StoredImages
from metajax.tasks.streamed import streamed_episodes
from metajax.types import Splits, TaskFamily


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
  workers: int = 0,
) -> Splits:
  """N-way K-shot tasks of images in three disjoint splits.

  Args:
    images: uint8 images, which stay uint8 on the device, or images on a disk.
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
    workers: processes that read training images ahead from a disk; 0: threads,
      which read those of validation and test in any case.

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
    numbers, helpers = (eval_ways, eval_query_shots), 0
    if split == "train":
      numbers, helpers = (ways, query_shots), workers
    families.append(
      split_episodes(data, where, split, *numbers, workers=helpers, **options)
    )
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
  workers: int = 0,
) -> TaskFamily:
  """N-way K-shot tasks of one split; see `episodes`.

  Raises:
    ValueError: if the images do not suffice. The message names the split.
  """
  build: Callable[..., TaskFamily] = labelled_episodes
  if isinstance(data.images, StoredImages):
    build = functools.partial(streamed_episodes, workers=workers)
  try:
    family = build(
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
  images: Any = data.images
  if isinstance(images, StoredImages):
    images = images.in_channels(channels)
  else:
    images = in_channels(images, channels)
  return data._replace(images=images)
