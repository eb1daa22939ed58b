"""CIFAR-100 in both layouts, the published splits, and what may be wrong.

Small files of the same layout: 3 and 2 images a class, the first bytes of each
of which say its class and its place.
"""

import collections
import io
import os
import pickle
import shutil
import tarfile

import jax
import numpy as np
import pytest

from metajax.tasks import cifar100_files, cifar_fs, fc100
from metajax.tasks.cifar100 import cifar100_splits
from metajax.tasks.cifar100_classes import (
  CIFAR_FS,
  FC100,
  SUPERCLASSES,
  fine_names,
  split_classes,
  superclass_labels,
)
from metajax.tasks.cifar100_files import load_cifar100

PER_CLASS = {"train": 3, "test": 2}
BINARY, PYTHON = "cifar-100-binary", "cifar-100-python"
META = {
  "fine_label_names": fine_names(),
  "coarse_label_names": list(SUPERCLASSES),
}


def _rows(name):
  """Pixels `[n, 3072]`, classes and superclasses of a file, in random order."""
  draw = np.random.default_rng(len(name))
  fine = draw.permutation(np.repeat(np.arange(100), PER_CLASS[name]))
  rows = draw.integers(0, 256, (len(fine), 3072), np.uint8)
  rows[:, 0] = fine
  rows[:, 1024] = 200 + np.arange(len(fine)) % 50
  return rows, fine, np.asarray(superclass_labels())[fine]


def _binary(name):
  rows, fine, coarse = _rows(name)
  labels = np.stack([coarse, fine], axis=1).astype(np.uint8)
  return np.concatenate([labels, rows], axis=1).tobytes()


def _python(name):
  rows, fine, coarse = _rows(name)
  fields = {"data": rows, "fine_labels": fine.tolist(), "batch_label": "1"}
  return pickle.dumps(fields | {"coarse_labels": coarse.tolist()}, 2)


def _files():
  return {
    BINARY: {
      **{f"{name}.bin": _binary(name) for name in PER_CLASS},
      "fine_label_names.txt": "\n".join(fine_names()).encode() + b"\n",
      "coarse_label_names.txt": "\n".join(SUPERCLASSES).encode() + b"\n",
    },
    PYTHON: {name: _python(name) for name in PER_CLASS}
    | {"meta": pickle.dumps(META, 2)},
  }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp("cifar")
  for layout, files in _files().items():
    folder = root / layout
    folder.mkdir()
    for name, content in files.items():
      (folder / name).write_bytes(content)
    with tarfile.open(root / f"{layout}.tar.gz", "w:gz") as archive:
      archive.add(folder, layout)
  return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(cifar100_files, "PER_CLASS", PER_CLASS)
  monkeypatch.delenv("METAJAX_DATA_DIR", raising=False)


@pytest.fixture
def folder(made, tmp_path):
  """`(layout) -> folder` of a copy of its files, to be spoilt."""

  def copy(name):
    if name.endswith(".gz"):
      shutil.copy(made / name, tmp_path)
    else:
      shutil.copytree(made / name, tmp_path / name)
    return tmp_path

  return copy


@pytest.mark.parametrize(
  "source", [BINARY, PYTHON, f"{BINARY}.tar.gz", f"{PYTHON}.tar.gz"]
)
def test_both_layouts_packed_or_not_are_read(source, folder):
  data = load_cifar100(folder(source))
  rows, fine, coarse = map(
    np.concatenate, zip(*map(_rows, PER_CLASS), strict=True)
  )
  np.testing.assert_array_equal(data.fine, fine)
  np.testing.assert_array_equal(data.coarse, coarse)
  assert data.images.dtype == np.uint8 and data.images.shape == (500, 32, 32, 3)
  # By hand: a plane of 1024 bytes for each colour, row by row.
  for colour, row, column in ((0, 0, 0), (1, 0, 0), (1, 2, 7), (2, 31, 31)):
    np.testing.assert_array_equal(
      data.images[:, row, column, colour],
      rows[:, 1024 * colour + 32 * row + column],
    )


def test_folder_itself_may_be_given(made, monkeypatch):
  whole = load_cifar100(made)
  for layout in (BINARY, PYTHON):
    found = load_cifar100(made / layout)
    np.testing.assert_array_equal(found.images, whole.images)
  monkeypatch.setenv("METAJAX_DATA_DIR", str(made))
  np.testing.assert_array_equal(load_cifar100().fine, whole.fine)


def test_python_2_pickles_are_read(folder):
  """Arrays and strings of Python 2 are 8-bit strings, opcodes U and T."""
  path = folder(PYTHON) / PYTHON / "train"
  rows, fine, coarse = _rows("train")

  def string(x):
    return b"T" + len(x).to_bytes(4, "little") + x

  def labels(x):
    return b"](" + b"".join(b"K" + bytes([i]) for i in x) + b"e"

  # What `cPickle.dumps` of protocol 2 wrote, but for what it remembers.
  array = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    + string(b"b")
    + b"\x87R(K\x01M"
    + len(rows).to_bytes(2, "little")
    + b"M\x00\x0c\x86cnumpy\ndtype\n"
    + string(b"u1")
    + b"K\x00K\x01\x87R(K\x03"
    + string(b"|")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    + string(rows.tobytes())
    + b"tb"
  )
  before = load_cifar100(path.parent)
  path.write_bytes(
    b"\x80\x02}("
    + string(b"data")
    + array
    + string(b"fine_labels")
    + labels(fine)
    + string(b"coarse_labels")
    + labels(coarse)
    + b"u."
  )
  assert pickle.loads(path.read_bytes(), encoding="latin1").keys() >= {"data"}
  for a, b in zip(load_cifar100(path.parent), before, strict=True):
    np.testing.assert_array_equal(a, b)


def test_class_lists_are_the_published_ones():
  names = fine_names()
  assert len(set(names)) == len(names) == 100
  assert len(SUPERCLASSES) == 20 and list(SUPERCLASSES) == sorted(SUPERCLASSES)
  counts = collections.Counter(superclass_labels())
  assert counts == dict.fromkeys(range(20), 5)
  for name, sizes in (("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])):
    parts = split_classes(name)
    assert [len(part) for part in parts] == sizes
    assert sorted(sum(parts, [])) == list(range(100))
  # Some that tell these splits from others: Bertinetto et al. test on whale,
  # baby and rocket; Oreshkin et al. on people, insects and two of mammals.
  assert {"whale", "baby", "rocket"} <= set(CIFAR_FS["test"].split())
  assert set(FC100["test"].split()) == {
    *("aquatic_mammals", "insects", "medium_mammals", "people")
  }
  of = np.asarray(superclass_labels())
  groups = [set(of[part]) for part in split_classes("fc100")]
  assert [len(group) for group in groups] == [12, 4, 4]
  assert len(set.union(*groups)) == 20


@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_splits_have_all_images_of_their_classes(name, made):
  data = load_cifar100(made)
  seen = set()
  parts = zip(cifar100_splits(name, made), split_classes(name), strict=True)
  for (images, labels, names), classes in parts:
    assert names == [fine_names()[i] for i in classes]
    np.testing.assert_array_equal(np.bincount(labels), [5] * len(classes))
    np.testing.assert_array_equal(
      images[:, 0, 0, 0], np.asarray(classes)[labels]
    )
    seen |= {image.tobytes() for image in images}
  assert seen == {image.tobytes() for image in data.images}


@pytest.mark.slow
def test_tasks_are_standardised_by_the_training_classes(made):
  """And are those of the test split, of images that lie there in bytes."""
  images = cifar100_splits("cifar_fs", made)
  options = {"ways": 4, "eval_ways": 3, "query_shots": 2}
  plain = cifar_fs(made, standardize=False, **options).test
  family = cifar_fs(made, **options).test
  stored = max(jax.tree.leaves(family), key=lambda x: x.size)
  assert stored.dtype == np.uint8
  np.testing.assert_array_equal(stored, images.test.images)
  found, raw = (jax.jit(f)(jax.random.key(1)) for f in (family, plain))
  train = images.train.images.reshape(-1, 3) / 255
  expected = (raw.query.inputs - train.mean(0)) / train.std(0)
  assert expected.shape == (6, 32, 32, 3)
  np.testing.assert_allclose(found.query.inputs, expected, atol=1e-5)
  fine = np.rint(255 * raw.query.inputs[:, 0, 0, 0])
  assert set(fine) <= set(split_classes("cifar_fs")[2])
  assert len(set(zip(fine, raw.query.targets.tolist(), strict=True))) == 3
  stored = max(jax.tree.leaves(fc100(made).test), key=lambda x: x.size)
  np.testing.assert_array_equal(
    stored, cifar100_splits("fc100", made).test.images
  )


def test_more_ways_than_classes_are_named(made):
  with pytest.raises(ValueError, match=r"^cifar_fs: ways=17: .* validation .*"):
    cifar_fs(made, ways=17)


def _cut(path):
  os.truncate(path, path.stat().st_size - 3074)
  return r"train\.bin: 919,126 bytes, must be 922,200"


def _coarse(path):
  content = bytearray(path.read_bytes())
  content[0] = (content[0] + 1) % 20
  path.write_bytes(content)
  return (
    r"train\.bin: image 0 is of class \d+ and superclass \d+, which is none"
  )


def _fine(path):
  content = bytearray(path.read_bytes())
  content[1] = 255
  path.write_bytes(content)
  return r"train\.bin: image 0 is of class 255"


def _uneven(path):
  content = path.read_bytes()
  path.write_bytes(content[3074:] + content[3074:6148])
  return r"train\.bin: \d images of class '.+', must be 3"


def _absent(path):
  path.unlink()
  return r"train\.bin: is not there"


@pytest.mark.parametrize("spoil", [_cut, _coarse, _fine, _uneven, _absent])
def test_binary_file_that_is_wrong_is_named(spoil, folder):
  root = folder(BINARY)
  message = spoil(root / BINARY / "train.bin")
  _assert_refused(root, f"^{root / BINARY}/{message}.*; fetch it again: remove")


def test_names_of_another_order_are_refused(folder):
  root = folder(BINARY)
  names = fine_names()
  names[3], names[4] = names[4], names[3]
  (root / BINARY / "fine_label_names.txt").write_text("\n".join(names))
  _assert_refused(root, "fine_label_names.txt: not .*'beaver' for 'bear'")


def _dump(fields, key, value):
  return pickle.dumps(fields | {key: value}, 2)


@pytest.mark.parametrize(
  "file, change, message",
  [
    ("train", lambda f: _dump(f, "data", f["data"][1:]), "pixels uint8"),
    ("train", lambda f: _dump(f, "data", f["data"] / 255), "pixels float64"),
    ("train", lambda f: _dump(f, "fine_labels", [0.5] * 300), "must be uint8"),
    ("train", lambda f: _dump(f, "fine_labels", [[1], []]), "must be uint8"),
    ("train", lambda f: _dump(f, "coarse_labels", [1] * 300), "image 0 is of"),
    ("train", lambda f: pickle.dumps({"data": 1}), "has no fine_labels"),
    ("train", lambda f: pickle.dumps([1]), "has no data"),
    ("train", lambda f: pickle.dumps(f)[:-999], "no pickle of plain data"),
    ("train", lambda f: pickle.dumps(os.system), "no pickle .* names posix"),
    ("meta", lambda f: _dump(f, "fine_label_names", ["a"]), "'a' for 'apple'"),
    ("meta", lambda f: _dump(f, "coarse_label_names", 1), "not the names"),
  ],
)
def test_python_file_that_is_wrong_is_named(file, change, message, folder):
  root = folder(PYTHON)
  path = root / PYTHON / file
  path.write_bytes(change(pickle.loads(path.read_bytes())))
  _assert_refused(root, f"^{path}: .*{message}.*fetch it again: remove")


def _halved(path):
  os.truncate(path, path.stat().st_size // 2)


def _text(path):
  path.write_text("no archive")


def _lacking(path):
  with tarfile.open(path, "w:gz") as archive:
    member = tarfile.TarInfo(f"{BINARY}/test.bin")
    archive.addfile(member, io.BytesIO())


@pytest.mark.parametrize("spoil", [_halved, _text, _lacking])
def test_damaged_archive_is_named(spoil, folder):
  path = folder(f"{BINARY}.tar.gz") / f"{BINARY}.tar.gz"
  spoil(path)
  _assert_refused(
    path.parent, f"^{path}: .*; fetch it again: remove {path} and"
  )


def _assert_refused(root, message):
  with pytest.raises(ValueError, match=message) as raised:
    cifar_fs(root)
  assert "\n" not in str(raised.value)
  assert "python scripts/download_cifar100.py --data_dir=" in str(raised.value)


def test_absent_data_say_how_to_get_them(tmp_path):
  fetch = "`python scripts/download_cifar100.py --data_dir="
  with pytest.raises(FileNotFoundError, match=f"^no data: .*{fetch}DIR`"):
    cifar_fs()
  with pytest.raises(FileNotFoundError, match=f"neither .*{fetch}{tmp_path}`"):
    fc100(tmp_path)
  (tmp_path / f"{BINARY}.tar.gz.part").touch()
  with pytest.raises(FileNotFoundError, match=f"not ended; {fetch}.* goes on"):
    fc100(tmp_path)
