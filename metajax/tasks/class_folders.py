"""Finds images in folders, with a sub-folder for each class."""

import os
from pathlib import Path

import numpy as np

from metajax.tasks.image_files import folders_in, images_in
from metajax.tasks.image_lists import SPLIT_NAMES, ClassFiles

# Shares of training and validation if the folder has no splits.
TRAIN, VALIDATION = 0.64, 0.16
LEAST = 5  # Classes of which these shares leave some for each split.


def has_class_folders(root: Path) -> bool:
  """Tells whether a folder has images in folders of classes."""
  return any(_split_folders(root)) or bool(_classes(root))


def in_class_folders(root: Path, seed: int) -> list[list[ClassFiles]]:
  """Returns the classes for training, validation and test, with their images.

  If the folder has sub-folders of the splits, these give the classes.
  Otherwise the splits are drawn, by `seed`.

  Raises:
    ValueError: for a split without classes, or for images in a folder within
      the folder of a class.
  """
  folders = _split_folders(root)
  if any(folders):
    _refuse_nested(*(root / name for names in SPLIT_NAMES for name in names))
    splits = [_classes(folder) if folder else [] for folder in folders]
  else:
    _refuse_nested(root)
    classes = _classes(root)
    order = np.random.default_rng(seed).permutation(len(classes))
    bounds = [round(len(order) * x) for x in (TRAIN, TRAIN + VALIDATION)]
    splits = [[classes[i] for i in part] for part in np.split(order, bounds)]
    if 0 < len(classes) < LEAST:
      raise ValueError(
        f"--data_dir={root}: {len(classes)} classes, must be {LEAST} or more "
        "to be divided into training, validation and test. Or divide them "
        f"yourself: {root}/train/CLASS/, val/CLASS/ and test/CLASS/."
      )
  for names, classes in zip(SPLIT_NAMES, splits, strict=True):
    if not classes:
      raise ValueError(
        f"--data_dir={root}: no classes for the split {names[-1]!r}; give "
        f"folders of images {root}/CLASS/, or {root}/{names[0]}/CLASS/."
      )
  return [
    [
      ClassFiles(str(folder.relative_to(root)), images_in(folder))
      for folder in classes
    ]
    for classes in splits
  ]


def _split_folders(root: Path) -> list[Path | None]:
  return [
    next((root / name for name in names if _classes(root / name)), None)
    for names in SPLIT_NAMES
  ]


def _refuse_nested(*parents: Path) -> None:
  """Raises a `ValueError` for images in a folder within a class's folder."""
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
