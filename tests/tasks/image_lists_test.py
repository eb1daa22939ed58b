"""Splits that tables and lists name: the same images as from three folders."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from metajax.tasks import image_folder
from metajax.tasks.image_folder import (
  fingerprint,
  is_image_folder,
  read_image_folder,
)

CLASSES = {"train": ["ant", "bee", "cat"], "val": ["dog", "emu"]} | {
  "test": ["fox", "gnu"]
}
PER_CLASS = 3


def _images():
  """Name and pixels of each image by split and class."""
  draw = np.random.default_rng(0)
  for split, classes in CLASSES.items():
    for label in classes:
      for i in range(PER_CLASS):
        pixels = draw.integers(0, 256, (4, 4, 3), np.uint8)
        yield split, label, f"{label}{i}.png", pixels


def _write(root, place):
  for split, label, name, pixels in _images():
    path = root / place.format(split=split, label=label, name=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
  return root


def _tables(root, place, first="filename,label"):
  """Ravi and Larochelle's."""
  _write(root, place)
  rows = {split: [first] for split in CLASSES}
  for split, label, name, _ in _images():
    rows[split].append(f"{name},{label}")
  for split, lines in rows.items():
    (root / f"{split}.csv").write_text("\r\n".join(lines) + "\r\n")
  return root


def _json(root, place):
  _write(root, place)
  (root / "splits.json").write_text(json.dumps(CLASSES))
  return root


@pytest.fixture
def folders(tmp_path):
  return read_image_folder(
    _write(tmp_path / "folders", "{split}/{label}/{name}"), 4
  )


@pytest.mark.parametrize(
  "make, place",
  [
    (_tables, "images/{name}"),
    (_tables, "{name}"),
    (_tables, "{label}/{name}"),
    (_tables, "images/{label}/{name}"),
    (_json, "{label}/{name}"),
    (_json, "images/{label}/{name}"),
  ],
)
def test_listed_splits_are_those_of_three_folders(
  make, place, folders, tmp_path
):
  root = make(tmp_path / "listed", place)
  assert is_image_folder(root)
  found = read_image_folder(root, 4)
  for a, b, classes in zip(found, folders, CLASSES.values(), strict=True):
    assert a.images.shape[-1] == 3
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.names == classes
  # By the colours that were written, red, green and blue.
  by_name = [pixels for split, *_, pixels in _images() if split == "train"]
  np.testing.assert_array_equal(found.train.images, by_name)


def test_columns_may_be_more_and_in_another_order(folders, tmp_path):
  root = _tables(tmp_path / "listed", "images/{name}")
  for path in root.glob("*.csv"):
    rows = [row.split(",") for row in path.read_text().split()]
    text = "\n".join(
      f"{label},{i},{name}" for i, (name, label) in enumerate(rows)
    )
    path.write_text("\ufeff" + text.replace("label,0,", "label,number,", 1))
  np.testing.assert_array_equal(
    read_image_folder(root, 4).test.images, folders.test.images
  )


def test_tables_of_something_else_are_no_lists(tmp_path):
  """A folder of classes may have any tables beside them."""
  root = _write(tmp_path / "folders", "{split}/{label}/{name}")
  before = fingerprint(root)
  (root / "train.csv").write_text("epoch,loss\n1,2\n")
  (root / "test.csv").write_bytes(b"\xff\xfe\0")
  assert fingerprint(root) == before


def test_fingerprint_is_of_the_list_and_the_files(tmp_path):
  root = _tables(tmp_path / "listed", "images/{name}")
  copy = shutil.copytree(root, tmp_path / "copies" / "listed")
  assert fingerprint(copy) == fingerprint(root)
  lines = (copy / "test.csv").read_text().split()
  (copy / "test.csv").write_text("\n".join(lines[:-1]))
  assert fingerprint(copy) != fingerprint(root)


def _edit(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))


def _absent_image(root):
  (root / "images/dog1.png").unlink()
  return r"val\.csv: line 3: .*images/dog1\.png is not there"


def _no_images(root):
  shutil.rmtree(root / "images")
  return r"train\.csv: line 2: ant0\.png is neither in .*images nor in "


def _twice(root):
  _edit(root / "test.csv", "fox1.png", "fox0.png")
  return r"test\.csv: line 3: fox0\.png is in line 2 already"


def _half_line(root):
  _edit(root / "test.csv", "gnu2.png,gnu", "gnu2.png")
  return r"test\.csv: line 7: no filename or no label"


def _crossing(root):
  _edit(root / "test.csv", "fox0.png,fox", "fox0.png,ant")
  return r"test\.csv: class 'ant' is in .*train\.csv already: a class is of one"


def _no_table(root):
  (root / "val.csv").unlink()
  return r"--data_dir=.*: no val\.csv beside the other tables"


def _other_columns(root):
  _edit(root / "val.csv", "filename", "file")
  return r"val\.csv: no column 'filename', must have"


def _empty(root):
  (root / "val.csv").write_text("filename,label\n")
  return r"val\.csv: lists no images"


def _broken_image(root):
  (root / "images/ant0.png").write_text("text")
  return r".*images/ant0\.png is no image: remove it"


@pytest.mark.parametrize(
  "spoil",
  [
    *[_absent_image, _no_images, _twice, _half_line, _crossing, _no_table],
    *[_other_columns, _empty, _broken_image],
  ],
)
def test_tables_that_are_wrong_are_named(spoil, tmp_path):
  root = _tables(tmp_path / "listed", "images/{name}")
  _assert_refused(root, spoil(root))


@pytest.mark.parametrize(
  "content, message",
  [
    ("{", "no JSON"),
    ("[1]", "must have a list 'train' of names"),
    ('{"train": ["ant"], "val": "dog"}', "must have a list 'val' of"),
    ('{"train": ["ant"], "val": [1]}', "must have a list 'val' of"),
    ('{"train": ["ant"], "val": []}', "must have a list 'val' of"),
    ('{"train": ["yak"]}', r"class 'yak' has no folder in .*"),
    ('{"train": ["../elsewhere"]}', r"class '\.\./elsewhere' has no folder"),
    ('{"train": ["none"]}', r"class 'none' has no images in"),
    (
      '{"train": ["ant"], "val": ["dog"], "test": ["ant"]}',
      "test: class 'ant' is in .*splits.json: train already",
    ),
    ('{"train": ["ant", "ant"], "val": ["dog"], "test": ["fox"]}', "train: c"),
  ],
)
def test_lists_that_are_wrong_are_named(content, message, tmp_path):
  root = _json(tmp_path / "listed", "{label}/{name}")
  (root / "none").mkdir()
  (tmp_path / "elsewhere").mkdir()
  Image.new("L", (2, 2)).save(tmp_path / "elsewhere" / "0.png")
  (root / "splits.json").write_text(content)
  _assert_refused(root, rf"splits\.json: {message}")


def _assert_refused(root, message):
  for call in (image_folder, read_image_folder):
    with pytest.raises(ValueError, match=f"^.*{message}") as raised:
      call(root)
    assert "\n" not in str(raised.value)
