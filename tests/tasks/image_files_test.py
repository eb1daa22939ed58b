"""Folders of images as people have them: turned, transparent, broken."""

import os
import re
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from metajax.tasks import image_folder
from metajax.tasks.image_files import read_images
from metajax.tasks.image_folder import (
  fingerprint,
  is_image_folder,
)


def _make(root, grey=10, num_classes=8, num_images=2):
  for index in range(num_classes):
    folder = root / f"class_{index}"
    folder.mkdir(parents=True)
    for example in range(num_images):
      Image.new("L", (4, 4), grey).save(folder / f"{example}.png")
  return root


def _pixels(folder):
  """All images of the training split."""
  splits = image_folder(folder, ways=2, image_size=4, num_rotations=4)
  return np.asarray(splits.train.args[0].examples)


def _read(image, folder, name, **options):
  """One image, as it is after it was a file, `[size, size, channels]`."""
  folder.mkdir(exist_ok=True)
  image.save(folder / name, **options)
  (pixels,) = read_images([folder], max(image.size)).images
  return pixels


def test_an_image_that_may_not_be_read_is_not_called_none(
  tmp_path, monkeypatch
):
  def refuse(path):
    raise PermissionError(f"[Errno 13] Permission denied: '{path}'")

  _make(tmp_path)
  monkeypatch.setattr(Image, "open", refuse)
  with pytest.raises(ValueError, match=r"class_0/0.png: permission denied"):
    read_images([tmp_path / "class_0"], 4)


def test_each_image_is_stored_once_however_classes_differ(tmp_path):
  _make(tmp_path)
  for example in range(2, 40):
    Image.new("L", (4, 4), 99).save(tmp_path / f"class_3/{example}.png")
  splits = image_folder(tmp_path, ways=2, image_size=4, num_rotations=4)
  stored = [x for s in splits for x in jax.tree.leaves(s) if x.ndim == 4]
  assert sum(map(len, stored)) == 8 * 2 + 38
  assert sum(int(np.sum(x[:, 0, 0, 0] == 99)) for x in stored) == 38


def test_small_classes_are_masked_where_that_is_asked_for(tmp_path):
  _make(tmp_path)
  options = {"ways": (2, 3), "shots": 2, "query_shots": 3, "image_size": 4}
  with pytest.raises(ValueError, match="together at most 2"):
    image_folder(tmp_path, num_rotations=4, **options)
  family = image_folder(
    tmp_path, small_classes=True, num_rotations=4, **options
  ).train
  support, query = jax.jit(family)(jax.random.key(0))
  assert support.inputs.shape[0] == 6 and query.inputs.shape[0] == 9
  assert int(support.mask.sum()) == int(query.mask.sum()) in (2, 3)


def test_other_working_folder_has_other_images(tmp_path, monkeypatch):
  for name, grey in (("one", 10), ("other", 20)):
    _make(tmp_path / name / "data", grey)
  for name, grey in (("one", 10), ("other", 20), ("one", 10)):
    monkeypatch.chdir(tmp_path / name)
    assert np.all(_pixels("data") == grey)


def _overwritten(path):
  Image.new("L", (4, 4), 77).save(path)


def _overwritten_with_the_old_time(path):
  before = path.stat()
  _overwritten(path)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(path):
  Image.new("L", (4, 4), 77).save(path.with_name("new"), "png")
  path.with_name("new").rename(path)


def _renamed(path):
  _overwritten(path)
  path.rename(path.with_name("9.png"))


@pytest.mark.parametrize(
  "change",
  [_overwritten, _overwritten_with_the_old_time, _replaced, _renamed],
)
def test_images_that_have_changed_are_read_again(change, tmp_path):
  _make(tmp_path)
  assert np.all(_pixels(tmp_path) == 10)
  for folder in tmp_path.iterdir():
    change(folder / "0.png")
  assert sorted(set(_pixels(tmp_path).ravel())) == [10, 77]


def test_fingerprint_is_of_sizes_too_but_not_of_times(tmp_path):
  _make(tmp_path)
  before = fingerprint(tmp_path)
  path = tmp_path / "class_1/0.png"
  os.utime(path, (0, 0))
  assert fingerprint(tmp_path) == before
  path.write_bytes(path.read_bytes() + b"\0")
  assert fingerprint(tmp_path) != before


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_images_are_turned_as_their_tags_say(name, orientation, tmp_path):
  """By the definition: where the first row and column of the file belong."""
  stored = np.zeros((16, 16, 3), np.uint8)
  stored[:8, :8], stored[:8, 8:], stored[8:, :8] = 250, 170, 90
  upright = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
  }[orientation](stored)
  exif = Image.Exif()
  exif[0x0112] = orientation
  found = _read(
    Image.fromarray(stored), tmp_path / "class", name, exif=exif, quality=95
  )
  # What is compressed is not exact; the greys are 80 apart.
  assert np.abs(found.astype(int) - upright).max() < 30


def _half_clear(mode, colour):
  image = Image.new(mode, (4, 4), colour)
  image.paste(Image.new(mode, (2, 4), (*colour[:-1], 0)), (0, 0))
  return image


def test_what_is_transparent_is_in_front_of_white(tmp_path):
  folder = tmp_path / "class"
  grey = _read(_half_clear("LA", (40, 255)), folder, "x.png")
  assert grey.shape == (4, 4, 1)
  np.testing.assert_array_equal(grey[0, :, 0], [255, 255, 40, 40])
  colour = _read(_half_clear("RGBA", (40, 0, 90, 255)), folder, "x.png")
  np.testing.assert_array_equal(colour[0], [[255] * 3] * 2 + [[40, 0, 90]] * 2)
  # By hand: 0.2 * 40 + 0.8 * 255 = 212.
  half = _read(Image.new("LA", (4, 4), (40, 51)), folder, "x.png")
  assert np.all(np.abs(half.astype(int) - 212) <= 1)


@pytest.mark.parametrize(
  "mode, values, clear, expected",
  [
    ("L", [[7, 90]] * 2, 7, [255, 90]),
    ("1", [[0, 255]] * 2, 0, [255, 255]),
    ("I;16", [[1792, 23040]] * 2, 1792, [255, 90]),
    ("P", [[0, 1]] * 2, 0, [255, 90]),
    ("RGB", [[[7] * 3, [90] * 3]] * 2, (7, 7, 7), [255, 90]),
  ],
)
def test_one_colour_may_be_transparent(mode, values, clear, expected, tmp_path):
  array = np.array(values, np.uint16 if mode == "I;16" else np.uint8)
  if mode == "P":
    image = Image.fromarray(array).convert("P")
    image.putpalette([7] * 3 + [90] * 3)
    image.putdata(array.ravel())
  elif mode == "1":
    image = Image.fromarray(array).convert("1")
  else:
    image = Image.fromarray(array)
  found = _read(image, tmp_path / "class", "x.png", transparency=clear)
  np.testing.assert_array_equal(found[0, :, 0], expected)


def test_hidden_folders_and_files_are_left_out(tmp_path):
  before = fingerprint(_make(tmp_path))
  _make(tmp_path / ".thumbnails", num_classes=1)
  _make(tmp_path / "class_0" / ".thumbnails", num_classes=1)
  (tmp_path / ".cache").mkdir()
  Image.new("L", (4, 4), 99).save(tmp_path / ".cache" / "0.png")
  (tmp_path / "class_0" / "._0.png").write_text("of a Macintosh")
  (tmp_path / "class_0" / "notes").mkdir()
  assert fingerprint(tmp_path) == before
  assert np.all(_pixels(tmp_path) == 10)
  only_hidden = tmp_path / "empty"
  _make(only_hidden / ".class", num_classes=1)
  assert not is_image_folder(only_hidden)


@pytest.mark.parametrize("parent", ["", "train"])
@pytest.mark.parametrize("deeper", ["class_1/more", "family/class_9", "a/b/c"])
def test_folders_within_folders_of_classes_are_named(parent, deeper, tmp_path):
  if parent:
    for name in ("train", "val", "test"):
      _make(tmp_path / name)
  else:
    _make(tmp_path)
  folder = tmp_path / parent / deeper
  folder.mkdir(parents=True)
  Image.new("L", (4, 4)).save(folder / "0.png")
  for call in (image_folder, fingerprint):
    with pytest.raises(ValueError, match=f"^{folder}: images in .*: move them"):
      call(tmp_path)


def _png(*chunks):
  data = b"\x89PNG\r\n\x1a\n"
  for name, content in chunks:
    body = name + content
    data += struct.pack(">I", len(content)) + body
    data += struct.pack(">I", zlib.crc32(body))
  return data


def _header(width, height, bits=8, colour=0):
  return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


PIXELS = (b"IDAT", zlib.compress(b"\0\1\2\3\4" * 4))
BROKEN = {
  "empty.png": b"",
  "text.jpg": b"no image\nat all",
  "cut.png": _png(_header(4, 4), PIXELS)[:45],
  "bomb.png": _png(_header(60_000, 60_000), PIXELS, (b"IEND", b"")),
  "zlib.png": _png(_header(4, 4), (b"IDAT", b"no stream"), (b"IEND", b"")),
  "text_bomb.png": _png(
    _header(4, 4),
    (b"zTXt", b"key\0\0" + zlib.compress(bytes(10**7))),
    PIXELS,
    (b"IEND", b""),
  ),
  "short_header.png": _png((b"IHDR", b"\0\0"), PIXELS),
  "short.bmp": b"BM" + bytes(14) + struct.pack("<I", 40),
  "short.gif": b"GIF89a\4\0\4\0\x80",
  "short.tif": b"II*\0\xff\xff\xff\x7f",
  "short.webp": b"RIFF\x10\0\0\0WEBPVP8 ",
  "short.jpg": b"\xff\xd8\xff\xe1\0\x08Exif",
}


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_is_wrong_with_an_image_names_it_in_a_line(name, tmp_path):
  path = tmp_path / name
  path.write_bytes(BROKEN[name])
  with pytest.raises(ValueError, match=f"^{re.escape(str(path))}") as raised:
    read_images([tmp_path], 4)
  assert "is no image: remove it" in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "error",
  [
    zlib.error("a"),
    struct.error("b"),
    EOFError(),
    ValueError("c\nd"),
    MemoryError(),
    IndexError("e"),
    Image.DecompressionBombError("f"),
  ],
)
def test_whatever_pillow_raises_names_the_image(error, tmp_path, monkeypatch):
  def fail(*arguments, **options):
    raise error

  path = tmp_path / "0.png"
  Image.new("L", (4, 4)).save(path)
  monkeypatch.setattr(Image.Image, "convert", fail)
  kind = type(error).__name__
  message = f"^{re.escape(str(path))} is no image: remove it. .*{kind}"
  with pytest.raises(ValueError, match=message + "[^\n]*$"):
    read_images([tmp_path], 4)


def test_link_to_nowhere_is_named(tmp_path):
  _make(tmp_path)
  (tmp_path / "class_0/9.png").symlink_to(tmp_path / "nowhere.png")
  with pytest.raises(ValueError, match=r"class_0/9\.png is no image: remove"):
    image_folder(tmp_path)
