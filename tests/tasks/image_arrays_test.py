"""Splits in files of numpy arrays, which are read without pickles."""

import os

import jax
import numpy as np
import pytest

from metajax.tasks import image_folder
from metajax.tasks.image_folder import (
  fingerprint,
  is_image_folder,
  read_image_folder,
)

SPLITS = ("train", "val", "test")


def _arrays(split, channels=3, size=6):
  draw = np.random.default_rng(SPLITS.index(split))
  shape = (12, size, size, channels) if channels else (12, size, size)
  images = draw.integers(0, 256, shape, np.uint8)
  labels = draw.permutation(np.repeat([3, 7, 50], 4))
  return {"images": images, "labels": labels}


def _save_npz(root, arrays, **options):
  root.mkdir(exist_ok=True)
  for split in SPLITS:
    np.savez(root / f"{split}.npz", **arrays(split, **options))
  return root


def _save_npy(root, arrays, **options):
  root.mkdir(exist_ok=True)
  for split in SPLITS:
    for name, array in arrays(split, **options).items():
      np.save(root / f"{split}_{name}.npy", array)
  return root


@pytest.mark.parametrize("save", [_save_npz, _save_npy])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_arrays_come_back_as_they_are(save, channels, tmp_path):
  root = save(tmp_path / "arrays", _arrays, channels=channels)
  assert is_image_folder(root)
  for data, split in zip(read_image_folder(root), SPLITS, strict=True):
    expected = _arrays(split, channels)
    images = expected["images"].reshape(12, 6, 6, -1)
    np.testing.assert_array_equal(data.images, images)
    assert data.names == ["3", "7", "50"]
    np.testing.assert_array_equal(
      np.array([3, 7, 50])[data.labels], expected["labels"]
    )


def test_tasks_are_of_those_arrays(tmp_path):
  root = _save_npz(tmp_path / "arrays", _arrays)
  splits = image_folder(root, ways=3, query_shots=3, standardize=True)
  data = _arrays("test")
  pixels = _arrays("train")["images"].reshape(-1, 3) / 255
  support, query = jax.jit(splits.test)(jax.random.key(0))
  rows = np.concatenate([support.inputs, query.inputs])
  rows = rows * pixels.std(0) + pixels.mean(0)
  found = {np.rint(255 * row).astype(np.uint8).tobytes() for row in rows}
  assert found == {image.tobytes() for image in data["images"]}


def test_images_are_resized_where_a_size_is_given(tmp_path):
  """A half of one grey and a half of another: their means stay."""
  images = np.zeros((4, 8, 8, 3), np.uint8)
  images[:, :4, :, 0] = 200
  root = _save_npz(
    tmp_path / "arrays", lambda _: {"images": images, "labels": [0, 0, 1, 1]}
  )
  found = read_image_folder(root, 4).train.images
  assert found.shape == (4, 4, 4, 3)
  np.testing.assert_allclose(found[..., 0].mean(), 100, atol=1)
  assert not found[..., 1:].any()
  np.testing.assert_array_equal(read_image_folder(root, 8).train.images, images)


def test_strings_are_labels_and_grey_goes_with_colour(tmp_path):
  def arrays(split):
    found = _arrays(split, channels=3 if split == "test" else 1)
    return found | {"labels": np.array(["a", "b"] * 6)}

  found = read_image_folder(_save_npz(tmp_path / "arrays", arrays))
  assert [data.images.shape[-1] for data in found] == [3, 3, 3]
  assert found.train.names == ["a", "b"]


def test_fingerprint_is_of_the_contents(tmp_path):
  one = _save_npy(tmp_path / "one", _arrays)
  before = fingerprint(one)
  images = np.load(one / "test_images.npy")
  images[0, 0, 0, 0] ^= 1
  np.save(one / "test_images.npy", images)
  assert fingerprint(one) != before


def _replace(split="train", **arrays):
  def spoil(root):
    np.savez(root / f"{split}.npz", **(_arrays(split) | arrays))

  return spoil


def _cut(root):
  path = root / "train.npz"
  os.truncate(path, path.stat().st_size // 2)


def _flip(root):
  path = root / "train.npz"
  np.savez_compressed(path, **_arrays("train"))
  content = bytearray(path.read_bytes())
  content[100:400] = bytes(300)
  path.write_bytes(content)


IMAGES = _arrays("train")["images"]


@pytest.mark.parametrize(
  "spoil, message",
  [
    (lambda root: (root / "val.npz").unlink(), "no val.npz and no val_images"),
    (lambda root: (root / "train.npz").write_text("text"), "cannot be read"),
    (lambda root: (root / "train.npz").write_bytes(b""), "cannot be read"),
    (_cut, "train.npz: cannot be read"),
    (_flip, "train.npz: cannot be read"),
    (
      lambda root: np.savez(root / "train.npz", x=IMAGES, labels=[1]),
      r"cannot be read \(has \['labels', 'x'\], must have 'images'\)",
    ),
    (_replace(images=IMAGES / 255), "images float64 .*, must be uint8"),
    (_replace(images=IMAGES[0]), "must be uint8|labels int64"),
    (_replace(images=IMAGES[..., :2]), "must be uint8"),
    (_replace(images=IMAGES[:0]), "must be uint8"),
    (_replace(images=IMAGES[:, 1:]), "images of 5 x 6, must be square"),
    (_replace(images=IMAGES[:, 1:, 1:]), r"images of \[5, 6\] pixels, must be"),
    (_replace(images=IMAGES.astype(object)), "allow_pickle=False"),
    (_replace(labels=np.arange(11)), r"labels int64 \(11,\), must be integers"),
    (_replace(labels=np.arange(12) / 2), "labels float64"),
  ],
)
def test_arrays_that_are_wrong_are_named(spoil, message, tmp_path):
  root = _save_npz(tmp_path / "arrays", _arrays)
  spoil(root)
  with pytest.raises(ValueError, match=message) as raised:
    image_folder(root)
  assert "\n" not in str(raised.value)
  assert str(root) in str(raised.value)


def test_images_without_labels_are_named(tmp_path):
  root = _save_npy(tmp_path / "arrays", _arrays)
  (root / "val_labels.npy").unlink()
  with pytest.raises(ValueError, match=r"val_labels\.npy: is not there, but"):
    image_folder(root)
