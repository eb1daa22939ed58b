"""Reads the class and split of each image from a table or a list."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from metajax.tasks.image_files import images_in

# Common names of training, validation and test.
SPLIT_NAMES = (("train",), ("val", "valid", "validation"), ("test",))
COLUMNS = ("filename", "label")
JSON_NAMES = ("splits.json", "split.json")
# Places where images may lie, by their names and classes.
PLACES: tuple[Callable[[Path, str, str], Path], ...] = (
  lambda root, label, name: root / "images" / name,
  lambda root, label, name: root / name,
  lambda root, label, name: root / label / name,
  lambda root, label, name: root / "images" / label / name,
)


class ClassFiles(NamedTuple):
  """The images of one class.

  Attributes:
    name: the name of the class, or of its folder.
    files: the images of the class.
  """

  name: str
  files: list[Path]


def has_list(root: Path) -> bool:
  """Tells whether a folder has a file that lists classes or images."""
  tables = [_first_file(root, names, ".csv") for names in SPLIT_NAMES]
  return any(path is not None and _is_table(path) for path in tables) or any(
    (root / name).is_file() for name in JSON_NAMES
  )


def listed(root: Path) -> list[list[ClassFiles]] | None:
  """Returns the classes of the three splits, if a file in a folder lists them.

  `train.csv`, `val.csv` and `test.csv` have the columns filename and label, as
  in Ravi and Larochelle's files of miniImageNet. The images lie in `images/`,
  beside the tables, or in folders of classes in one of these places.
  Alternatively, `splits.json` has the names of the classes, which are folders::

    {"train": ["cat", ...], "val": ["dog", ...], "test": ["cow", ...]}

  Raises:
    ValueError: if a list is damaged, names a missing file or class, or has a
      class in two splits.
  """
  if not has_list(root):
    return None
  tables = [_first_file(root, names, ".csv") for names in SPLIT_NAMES]
  if any(path is not None and _is_table(path) for path in tables):
    for path, names in zip(tables, SPLIT_NAMES, strict=True):
      if path is None:
        raise ValueError(
          f"--data_dir={root}: no {names[0]}.csv beside the other tables; it "
          f"has a line {','.join(COLUMNS)} for each image of the split."
        )
    found = [_of_table(root, path) for path in tables if path is not None]
    return _disjoint(found, [str(path) for path in tables])
  path = next(root / name for name in JSON_NAMES if (root / name).is_file())
  where = [f"{path}: {names[0]}" for names in SPLIT_NAMES]
  return _disjoint(_of_json(root, path), where)


def _first_file(root: Path, names: Iterable[str], suffix: str) -> Path | None:
  paths = [root / f"{name}{suffix}" for name in names]
  return next((path for path in paths if path.is_file()), None)


def _is_table(path: Path) -> bool:
  """Tells whether a file is a table of images, by its columns."""
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      header = next(csv.reader(file), [])
  except (OSError, ValueError, csv.Error):
    return False
  return set(COLUMNS) <= set(header)


def _of_table(root: Path, path: Path) -> list[ClassFiles]:
  classes: dict[str, list[Path]] = {}
  seen: dict[Path, int] = {}
  place = None
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      rows = csv.DictReader(file)
      missing = [x for x in COLUMNS if x not in (rows.fieldnames or [])]
      if missing:
        raise ValueError(f"no column {missing[0]!r}, must have {COLUMNS}")
      for row in rows:
        name, label = (row[column] for column in COLUMNS)
        line = f"line {rows.line_num}"
        if not name or not label:
          raise ValueError(f"{line}: no filename or no label")
        if place is None:
          place = _place(root, label, name, line)
        image = place(root, label, name)
        if image in seen:
          raise ValueError(f"{line}: {name} is in line {seen[image]} already")
        if not image.is_file():
          raise ValueError(f"{line}: {image} is not there")
        seen[image] = rows.line_num
        classes.setdefault(label, []).append(image)
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(f"{path}: {error}.") from error
  if not classes:
    raise ValueError(f"{path}: lists no images.")
  return [ClassFiles(name, sorted(classes[name])) for name in sorted(classes)]


def _place(root: Path, label: str, name: str, line: str) -> Callable:
  for place in PLACES:
    if place(root, label, name).is_file():
      return place
  raise ValueError(
    f"{line}: {name} is neither in {root / 'images'} nor in {root}, "
    f"nor in a folder {label} there"
  )


def _of_json(root: Path, path: Path) -> list[list[ClassFiles]]:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: no JSON ({error}).") from error
  splits = []
  for names in SPLIT_NAMES:
    classes = next(
      (found[x] for x in names if isinstance(found, dict) and x in found), None
    )
    if (
      not isinstance(classes, list)
      or not classes
      or not all(isinstance(x, str) for x in classes)
    ):
      raise ValueError(
        f"{path}: must have a list {names[0]!r} of names of classes."
      )
    splits.append([_class_folder(root, path, name) for name in sorted(classes)])
  return splits


def _class_folder(root: Path, path: Path, name: str) -> ClassFiles:
  for folder in (root / name, root / "images" / name):
    # A name must not be a path out of this folder.
    if folder.is_dir() and os.path.basename(name) == name:
      if files := images_in(folder):
        return ClassFiles(name, files)
      raise ValueError(f"{path}: class {name!r} has no images in {folder}.")
  raise ValueError(
    f"{path}: class {name!r} has no folder in {root} or {root / 'images'}."
  )


def _disjoint(
  splits: list[list[ClassFiles]], where: Sequence[str]
) -> list[list[ClassFiles]]:
  """Returns the splits, or raises a `ValueError` for a class in two of them."""
  first: dict[str, str] = {}
  for classes, place in zip(splits, where, strict=True):
    for name, _ in classes:
      if name in first:
        raise ValueError(
          f"{place}: class {name!r} is in {first[name]} already: a class is of "
          "one split."
        )
      first[name] = place
  return splits
