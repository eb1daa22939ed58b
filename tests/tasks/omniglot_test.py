"""Omniglot: reading the archives, the cache, the splits, what goes wrong.

Most tests read a small data set of the same layout, drawn at random, in which
an image tells its character and by how much it was turned.
"""

import importlib
import io
import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from metajax.tasks import omniglot
from metajax.tasks.omniglot import (
  ARCHIVES,
  OmniglotImages,
  load_omniglot,
  split_characters,
)

# `metajax.tasks.omniglot` as an attribute is the function.
MODULE = importlib.import_module("metajax.tasks.omniglot")
BACKGROUND, EVALUATION = ARCHIVES
# 6 alphabets of 2 characters, and 4 of 2; 4 drawings of 8 x 8 each.
SMALL = {BACKGROUND: 12, EVALUATION: 8}
CHARACTERS, DRAWINGS, SIZE = 20, 4, 8
INK = np.random.default_rng(0).random((CHARACTERS, DRAWINGS, SIZE, SIZE)) < 0.3
ALPHABETS = np.repeat([f"Alphabet_{a}" for a in range(10)], 2)
# Character by pixels, turned or not.
CHARACTER = {
  np.rot90(INK[character, drawing], turn).tobytes(): character
  for character, drawing, turn in np.ndindex(CHARACTERS, DRAWINGS, 4)
}
REAL = os.environ.get("METAJAX_DATA_DIR")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The folder of the cache, which no test may have elsewhere."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.delenv("METAJAX_DATA_DIR", raising=False)
  return tmp_path / "cache" / "metajax"


@pytest.fixture
def small(tmp_path, monkeypatch):
  """The folder of the small data set."""
  monkeypatch.setattr(MODULE, "ARCHIVES", SMALL)
  monkeypatch.setattr(MODULE, "DRAWINGS", DRAWINGS)
  monkeypatch.setattr(MODULE, "TRAIN", 12)
  monkeypatch.setattr(MODULE, "VALIDATION", 3)
  monkeypatch.setattr(MODULE, "VALIDATION_ALPHABETS", 2)
  folder = tmp_path / "data"
  folder.mkdir()
  for name, members in _members(INK).items():
    _write_archive(folder / name, members)
  return folder


def _png(ink):
  """Returns a drawing like the authors': 1 bit per pixel, ink is 0."""
  file = io.BytesIO()
  Image.fromarray(~ink).save(file, "png")
  return file.getvalue()


def _members(ink):
  """Returns what is in the archives: contents by member by archive."""
  members = {BACKGROUND: {}, EVALUATION: {}}
  for character, drawings in enumerate(ink):
    name = BACKGROUND if character < SMALL[BACKGROUND] else EVALUATION
    folder = (
      f"{name[:-4]}/{ALPHABETS[character]}/character{character % 2 + 1:02}"
    )
    for number, drawing in enumerate(drawings):
      png = f"{folder}/{character:04}_{number + 1:02}.png"
      members[name][png] = _png(drawing)
  return members


def _write_archive(path, members):
  with zipfile.ZipFile(path, "w") as archive:
    for member, content in members.items():
      archive.writestr(member, content)


def _keep_stat(path, content):
  """Gives a file other content of the same size and time."""
  before = path.stat()
  path.write_bytes(content[: before.st_size].ljust(before.st_size, b"\0"))
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert path.stat().st_mtime_ns == before.st_mtime_ns


def _files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def _assert_is_small(data, ink=INK):
  np.testing.assert_array_equal(data.images, np.uint8(255) * ink[..., None])
  assert data.images.dtype == np.uint8
  assert data.alphabets.tolist() == ALPHABETS.tolist()
  assert data.is_background.tolist() == [True] * 12 + [False] * 8


# Reading.


def test_ink_is_255_on_0_and_every_drawing_in_its_place(small):
  _assert_is_small(load_omniglot(small, SIZE))


def test_order_does_not_depend_on_the_order_in_the_archive(small):
  for name, members in _members(INK).items():
    _write_archive(small / name, dict(reversed(members.items())))
  _assert_is_small(load_omniglot(small, SIZE))


def test_other_files_in_the_archive_are_passed_over(small):
  for name in SMALL:
    with zipfile.ZipFile(small / name, "a") as archive:
      archive.writestr(f"{name[:-4]}/", "")
      archive.writestr(f"{name[:-4]}/README.txt", "about")
  _assert_is_small(load_omniglot(small, SIZE))


def _lanczos(pixels, size):
  """Resizes the first axis by the window of 3 lobes, written out.

  Output i has its centre at (i + 1/2) s, where s is the number of inputs per
  output, and weighs the input at distance x from it, in units of s, by
  sinc(x) sinc(x / 3), |x| < 3.
  """
  scale = len(pixels) / size
  centers = (np.arange(size) + 0.5) * scale
  x = (np.arange(len(pixels)) + 0.5 - centers[:, None]) / scale
  weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
  weights /= weights.sum(axis=1, keepdims=True)
  # The result of each axis is a picture, whose pixels are 8 bits.
  return np.clip(np.rint(np.tensordot(weights, pixels, 1)), 0, 255)


def test_drawings_are_resized_by_lanczos(small):
  rng = np.random.default_rng(1)
  # Strokes, as noise of single pixels would be all grey: blocks of 7 x 7.
  blocks = rng.random((CHARACTERS, DRAWINGS, 15, 15)) < 0.2
  ink = np.kron(blocks, np.ones((7, 7), bool)).astype(bool)
  for name, members in _members(ink).items():
    _write_archive(small / name, members)
  images = load_omniglot(small).images
  assert images.shape == (CHARACTERS, DRAWINGS, 28, 28, 1)
  for found, drawing in zip(
    images.reshape(-1, 28, 28), ink.reshape(-1, 105, 105), strict=True
  ):
    across = _lanczos(255.0 * ~drawing.T, 28).T
    by_hand = 255 - _lanczos(across, 28)
    # A rounding of the first axis may go the other way, and the second's too.
    assert np.abs(found - by_hand).max() <= 2


@pytest.mark.parametrize("image_size", [0, -1, 106])
def test_image_size_out_of_range_is_named(small, image_size):
  with pytest.raises(ValueError, match=f"^image_size={image_size}: .*1 to 105"):
    load_omniglot(small, image_size)


@pytest.mark.parametrize("image_size", [1, 105])
def test_image_size_may_be_anything_in_range(small, image_size):
  shape = load_omniglot(small, image_size).images.shape
  assert shape == (CHARACTERS, DRAWINGS, image_size, image_size, 1)


def test_argument_wins_over_environment(small, monkeypatch):
  monkeypatch.setenv("METAJAX_DATA_DIR", str(small / "nowhere"))
  _assert_is_small(load_omniglot(small, SIZE))
  monkeypatch.setenv("METAJAX_DATA_DIR", str(small))
  _assert_is_small(load_omniglot(image_size=SIZE))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
  """1623 characters of 50 alphabets, all drawings being the same."""
  folder = tmp_path_factory.mktemp("full")
  ink = np.zeros((10, 10), bool)
  ink[2:7, 4:6] = True
  png = _png(ink)
  for name, characters, alphabets in (
    (BACKGROUND, 964, 30),
    (EVALUATION, 659, 20),
  ):
    members = {}
    for i in range(characters):
      alphabet, number = f"{name[7:11]}{i % alphabets:02}", i // alphabets
      for drawing in range(20):
        members[
          f"{name[:-4]}/{alphabet}/character{number:02}/{i:04}_{drawing:02}.png"
        ] = png
    _write_archive(folder / name, members)
  return folder


# The authors' drawings too, where they are.
@pytest.mark.slow
@pytest.mark.parametrize("source", ["full_size", *([REAL] if REAL else [])])
def test_data_set_is_1623_characters_of_50_alphabets(source, request):
  folder = request.getfixturevalue(source) if source == "full_size" else source
  before = _files(Path(folder))
  data = load_omniglot(folder)
  assert data.images.shape == (1623, 20, 28, 28, 1)
  assert len(np.unique(data.alphabets)) == 50
  assert len(np.unique(data.alphabets[data.is_background])) == 30
  assert len(np.unique(data.alphabets[~data.is_background])) == 20
  assert np.sum(data.is_background) == 964
  # Thin strokes: the other way round it would be 0.9.
  assert 0.05 < data.images.mean() / 255 < 0.15
  assert np.all(data.images.max(axis=(2, 3, 4)) > 100)
  splits = omniglot(folder)
  sizes = [len(jax.tree.leaves(family)[0]) for family in splits]
  assert sizes == [1100, 100, 423]
  with pytest.raises(ValueError, match="shots=5 and query_shots=16: .* 20,"):
    omniglot(folder, shots=5, query_shots=16)
  assert _files(Path(folder)) == before


# The cache.


def test_second_load_reads_no_archive(small, cache):
  _assert_is_small(load_omniglot(small, SIZE))
  (made,) = _files(cache)
  for name in SMALL:
    _keep_stat(small / name, b"no archive")
  _assert_is_small(load_omniglot(small, SIZE))
  assert _files(cache) == [made]


@pytest.mark.parametrize("name", SMALL)
def test_archive_of_another_size_or_time_is_read_anew(small, name):
  _assert_is_small(load_omniglot(small, SIZE))
  before = (small / name).stat()
  # Another size at the same time: a comment at the end.
  _write_archive(small / name, _members(~INK)[name])
  with zipfile.ZipFile(small / name, "a") as archive:
    archive.comment = b"other" * 100
  assert (small / name).stat().st_size != before.st_size
  os.utime(small / name, ns=(before.st_atime_ns, before.st_mtime_ns))
  inverted = np.arange(CHARACTERS) < SMALL[BACKGROUND]
  if name == EVALUATION:
    inverted = ~inverted
  ink = np.where(inverted[:, None, None, None], ~INK, INK)
  _assert_is_small(load_omniglot(small, SIZE), ink)
  # The same size at another time.
  _keep_stat(small / name, b"no archive")
  _assert_is_small(load_omniglot(small, SIZE), ink)
  os.utime(small / name, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
  with pytest.raises(ValueError, match=f"{name}: damaged"):
    load_omniglot(small, SIZE)


def test_each_image_size_has_its_own_cache(small, cache):
  load_omniglot(small, SIZE)
  assert load_omniglot(small, 5).images.shape[2:] == (5, 5, 1)
  assert len(_files(cache)) == 2
  for name in SMALL:
    _keep_stat(small / name, b"no archive")
  _assert_is_small(load_omniglot(small, SIZE))
  assert load_omniglot(small, 5).images.shape[2:] == (5, 5, 1)


def test_copy_of_the_data_elsewhere_has_the_same_cache(small, cache):
  load_omniglot(small, SIZE)
  copy = shutil.copytree(small, small.with_name("copy"))  # Times too.
  for name in SMALL:
    _keep_stat(copy / name, b"no archive")
  _assert_is_small(load_omniglot(copy, SIZE))
  assert len(_files(cache)) == 1


def _flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 4] ^= 1
  path.write_bytes(content)


def _lose_a_field(path):
  np.savez(path, images=np.zeros(3))


@pytest.mark.parametrize(
  "damage",
  [
    _flip_a_bit,
    _lose_a_field,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"text"),
  ],
)
def test_damaged_cache_is_told_and_made_again(small, cache, damage):
  load_omniglot(small, SIZE)
  (made,) = _files(cache)
  damage(made)
  with pytest.warns(UserWarning, match=f"^{re.escape(str(made))}: damaged"):
    _assert_is_small(load_omniglot(small, SIZE))
  for name in SMALL:
    _keep_stat(small / name, b"no archive")
  _assert_is_small(load_omniglot(small, SIZE))
  assert _files(cache) == [made]


def test_without_a_place_for_the_cache_archives_are_read_every_time(
  small, cache
):
  cache.parent.write_text("a file where the folder would be")
  _assert_is_small(load_omniglot(small, SIZE))
  for name, members in _members(~INK).items():
    _write_archive(small / name, members)
  _assert_is_small(load_omniglot(small, SIZE), ~INK)
  assert cache.parent.read_text() == "a file where the folder would be"


def test_full_disk_leaves_no_part_of_a_cache(small, cache, monkeypatch):
  def save(file, **arrays):
    del arrays
    file.write(b"the beginning")
    raise OSError("No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(np, "savez", save)
    _assert_is_small(load_omniglot(small, SIZE))
  assert cache.is_dir() and _files(cache) == []
  load_omniglot(small, SIZE)
  assert len(_files(cache)) == 1


def test_interrupt_leaves_no_part_of_a_cache(small, cache, monkeypatch):
  def replace(source, target):
    del source, target
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", replace)
  with pytest.raises(KeyboardInterrupt):
    load_omniglot(small, SIZE)
  assert cache.is_dir() and _files(cache) == []


@pytest.mark.parametrize("value", [None, ""])
def test_cache_is_below_home_by_default(small, monkeypatch, tmp_path, value):
  if value is None:
    monkeypatch.delenv("XDG_CACHE_HOME")
  else:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
  load_omniglot(small, SIZE)
  (made,) = _files(tmp_path / "home")
  assert made.parent == tmp_path / "home" / ".cache" / "metajax"


# What goes wrong.


def test_no_folder_at_all_says_how_to_get_the_data():
  with pytest.raises(FileNotFoundError) as caught:
    load_omniglot()
  message = str(caught.value)
  assert "--data_dir" in message and "METAJAX_DATA_DIR" in message
  assert "`python scripts/download_omniglot.py --data_dir=DIR`" in message


def _remove_archive(folder, name):
  (folder / name).unlink()


def _make_folder(folder, name):
  (folder / name).unlink()
  (folder / name).mkdir()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("remove", [_remove_archive, _make_folder])
def test_missing_archive_is_named_with_the_command(small, cache, name, remove):
  remove(small, name)
  with pytest.raises(FileNotFoundError) as caught:
    load_omniglot(small, SIZE)
  message = str(caught.value)
  assert f"{name} is not there" in message
  assert f"`python scripts/download_omniglot.py --data_dir={small}`" in message
  assert _files(cache) == []


def test_missing_folder_of_the_environment_is_named(small, monkeypatch):
  folder = small / "nowhere"
  monkeypatch.setenv("METAJAX_DATA_DIR", str(folder))
  with pytest.raises(FileNotFoundError, match=f"--data_dir={folder}: "):
    load_omniglot()


def _truncate_archive(folder, name):
  content = (folder / name).read_bytes()
  (folder / name).write_bytes(content[: len(content) // 2])
  return "damaged"


def _empty_archive(folder, name):
  (folder / name).write_bytes(b"")
  return "damaged"


def _flip_a_stored_bit(folder, name):
  """In the pixels of one drawing, which are stored as they are here."""
  drawing = _members(INK)[name].popitem()[1]
  content = (folder / name).read_bytes()
  assert content.count(drawing) == 1
  flipped = bytearray(drawing)
  flipped[len(drawing) // 2] ^= 1
  (folder / name).write_bytes(content.replace(drawing, flipped))
  return "damaged"


def _break_a_stream(folder, name):
  """What is compressed begins with a block of no kind that there is."""
  path, content = folder / name, b"1234" * 50
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for member, png in _members(INK)[name].items():
      archive.writestr(member, png + content)
  with zipfile.ZipFile(path) as archive:
    info = archive.infolist()[-1]
  broken = bytearray(path.read_bytes())
  broken[info.header_offset + 30 + len(info.filename)] = 0xFF
  path.write_bytes(broken)
  return "damaged"


def _change_members(folder, name, change):
  members = _members(INK)[name]
  change(members)
  _write_archive(folder / name, members)


def _lose_a_character(folder, name):
  def change(members):
    for member in list(members)[:DRAWINGS]:
      del members[member]

  _change_members(folder, name, change)
  return f"{SMALL[name] - 1} characters, must be {SMALL[name]}"


def _lose_a_drawing(folder, name):
  character = []

  def change(members):
    lost = list(members)[DRAWINGS + 1]
    del members[lost]
    character.append(os.path.dirname(lost))

  _change_members(folder, name, change)
  return f"{character[0]} has 3 drawings, must be 4"


def _have_a_drawing_more(folder, name):
  _change_members(
    folder,
    name,
    lambda members: members.update(
      {next(iter(members)).replace("_01", "_05"): b""}
    ),
  )
  return "character01 has 5 drawings, must be 4"


def _have_text_for_a_drawing(folder, name):
  member = list(_members(INK)[name])[DRAWINGS]
  _change_members(
    folder, name, lambda members: members.update({member: b"text"})
  )
  return f"{member} is no image"


def _have_half_a_drawing(folder, name):
  member, png = list(_members(INK)[name].items())[DRAWINGS]
  _change_members(
    folder, name, lambda members: members.update({member: png[:45]})
  )
  return f"{member} is no image"


def _have_an_image_too_large(folder, name):
  """Of 65536 x 65536 pixels, as its header says."""
  member, png = list(_members(INK)[name].items())[DRAWINGS]
  header = b"IHDR" + 2 * (1 << 16).to_bytes(4) + png[24:29]
  huge = png[:12] + header + zlib.crc32(header).to_bytes(4) + png[33:]
  _change_members(folder, name, lambda members: members.update({member: huge}))
  return f"{member} is no image (DecompressionBombError"


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
  "damage",
  [
    _truncate_archive,
    _empty_archive,
    _flip_a_stored_bit,
    _break_a_stream,
    _have_an_image_too_large,
    _lose_a_character,
    _lose_a_drawing,
    _have_a_drawing_more,
    _have_text_for_a_drawing,
    _have_half_a_drawing,
  ],
)
def test_damaged_archive_is_named_with_the_remedy(small, cache, name, damage):
  what = damage(small, name)
  with pytest.raises(ValueError) as caught:
    load_omniglot(small, SIZE)
  message = str(caught.value)
  assert message.startswith(f"{small / name}: ") and what in message
  assert "remove it and run" in message
  assert f"`python scripts/download_omniglot.py --data_dir={small}`" in message
  assert _files(cache) == []


# The splits.


def _full_size_data():
  """The sizes of the data set without its pixels."""
  rng = np.random.default_rng(0)
  background = [f"b{a:02}" for a in rng.permutation(np.arange(964) % 30)]
  evaluation = [f"e{a:02}" for a in rng.permutation(np.arange(659) % 20)]
  return OmniglotImages(
    np.zeros((1623, 20, 1, 1, 1), np.uint8),
    np.array(background + evaluation),
    np.arange(1623) < 964,
  )


def test_random_split_is_1100_100_423_characters_of_all_alphabets():
  data = _full_size_data()
  parts = split_characters(data, "random", 0)
  assert [len(part) for part in parts] == [1100, 100, 423]
  assert sorted(np.concatenate(parts)) == list(range(1623))
  # The background's 59 % of each part, within 4.5 hypergeometric sigmas.
  share = 964 / 1623
  for part in parts:
    n = len(part)
    sigma = np.sqrt(n * share * (1 - share) * (1623 - n) / 1622)
    assert abs(np.sum(part < 964) - n * share) < 4.5 * sigma
  assert len(np.unique(data.alphabets[parts[0]])) == 50


def test_official_split_is_25_5_20_alphabets_none_of_which_crosses():
  data = _full_size_data()
  # Drawn with repetitions, the 5 would be different in 0.7^20 = 8e-4.
  for seed in range(20):
    parts = split_characters(data, "official", seed)
    assert sorted(np.concatenate(parts)) == list(range(1623))
    alphabets = [set(data.alphabets[part]) for part in parts]
    assert [len(part) for part in alphabets] == [25, 5, 20]
    assert len(set.union(*alphabets)) == 50
    assert alphabets[2] == {f"e{a:02}" for a in range(20)}


@pytest.mark.parametrize("split", ["random", "official"])
def test_split_is_a_function_of_its_seed(split):
  data = _full_size_data()
  first, again, other = (split_characters(data, split, s) for s in (0, 0, 1))
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a, b)
  assert set(first[1]) != set(other[1])
  assert set(first[0]) != set(other[0])


def test_unknown_split_is_named(small):
  with pytest.raises(ValueError, match="^split='vinyals': .*random.*official"):
    omniglot(small, split="vinyals", image_size=SIZE)


def _characters(images):
  pixels = np.asarray(images).reshape(-1, SIZE, SIZE) > 0.5
  return {CHARACTER[image.tobytes()] for image in pixels}


@pytest.mark.slow
def test_no_character_crosses_the_splits_in_any_rotation(small):
  """Trap 9, by the pixels of the tasks themselves."""
  splits = omniglot(small, ways=5, image_size=SIZE)
  keys = jax.random.split(jax.random.key(0), 200)
  seen = []
  for family in splits:
    support, query = jax.jit(jax.vmap(family))(keys)
    assert support.inputs.shape == query.inputs.shape == (200, 5, 8, 8, 1)
    seen.append(_characters(support.inputs) | _characters(query.inputs))
  # 1000 classes of at most 12 * 4 were drawn: P(one is missing) < 1e-8.
  assert [len(part) for part in seen] == [12, 3, 5]
  assert len(set.union(*seen)) == CHARACTERS


@pytest.mark.parametrize("split", ["random", "official"])
@pytest.mark.parametrize("split_seed", [0, 3])
def test_families_have_the_images_of_their_characters(small, split, split_seed):
  splits = omniglot(small, split=split, split_seed=split_seed, image_size=SIZE)
  data = load_omniglot(small, SIZE)
  parts = split_characters(data, split, split_seed)
  for family, part in zip(splits, parts, strict=True):
    (images,) = jax.tree.leaves(family)
    assert images.shape == (len(part), DRAWINGS, SIZE, SIZE, 1)
    assert _characters(images) == set(part.tolist())
  if split == "official":
    assert [len(part) for part in parts] == [8, 4, 8]


@pytest.mark.parametrize(
  "eval_query_shots, expected", [(None, (2, 2, 2)), (3, (2, 3, 3))]
)
def test_query_shots_are_those_asked_for(small, eval_query_shots, expected):
  splits = omniglot(
    small,
    ways=4,
    shots=1,
    query_shots=2,
    eval_query_shots=eval_query_shots,
    image_size=SIZE,
  )
  for family, query_shots in zip(splits, expected, strict=True):
    support, query = jax.eval_shape(family, jax.random.key(0))
    assert support.inputs.shape == (4, SIZE, SIZE, 1)
    assert query.inputs.shape == (4 * query_shots, SIZE, SIZE, 1)


@pytest.mark.parametrize(
  "arguments, message",
  [
    # Validation has 3 characters, so 12 classes with rotations.
    ({"ways": 13}, "ways=13: must be at most 12"),
    ({"ways": 7, "num_rotations": 2}, "ways=7: must be at most 6"),
    ({"ways": 4, "num_rotations": 1}, "ways=4: must be at most 3"),
    ({"shots": 0}, "shots=0"),
    ({"query_shots": 0}, "query_shots=0"),
    ({"num_rotations": 3}, "num_rotations=3"),
    ({"shots": 2, "query_shots": 3}, "shots=2 and query_shots=3: .* most 4"),
    ({"image_size": 106}, "image_size=106"),
  ],
)
def test_impossible_arguments_are_named(small, arguments, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    omniglot(small, **({"image_size": SIZE} | arguments))
