"""Tasks of a folder of images, in which every image can be told apart."""

import jax
import numpy as np
import pytest
from PIL import Image

from metajax.tasks import few_shot_episodes, image_folder
from metajax.tasks.image_files import read_images
from metajax.tasks.image_folder import (
  fingerprint,
  is_image_folder,
)

SIZE = 4


def _value(index, example):
  """The grey value by which an image is known."""
  return 12 * index + example + 1


def _make(root, num_classes, counts=(5, 7, 6), mode="L", first=0):
  for index in range(first, first + num_classes):
    folder = root / f"class_{index:02}"
    folder.mkdir(parents=True)
    for example in range(counts[index % len(counts)]):
      grey = Image.new("L", (6, 5), _value(index, example))
      grey.convert(mode).save(folder / f"{example}.png")
  return root


def _drawn(family, num_tasks=40):
  """Classes and examples of many episodes: `[tasks, ways, ...]` of values."""
  episodes = jax.jit(jax.vmap(family))(
    jax.random.split(jax.random.key(0), num_tasks)
  )
  return jax.tree.map(np.asarray, episodes)


def _values(batch):
  found = np.rint(255 * batch.inputs).astype(int)
  assert (found == found[:, :, :1, :1, :1]).all()  # Of one grey everywhere.
  return found[:, :, 0, 0, 0]


@pytest.mark.slow
def test_examples_are_of_their_class_different_and_all_in_use(tmp_path):
  """Also of the classes with the most images, and none is the filling."""
  for name, first in (("train", 0), ("val", 9), ("test", 14)):
    _make(tmp_path / name, 5, first=first)
  splits = image_folder(tmp_path, ways=3, shots=2, query_shots=3, image_size=4)
  for family, first in zip(splits, (0, 9, 14), strict=True):
    episodes = _drawn(family, 200)
    support, query = map(_values, episodes)
    assert episodes.support.inputs.shape == (200, 6, SIZE, SIZE, 1)
    seen = set()
    for task in range(200):
      values = np.concatenate([support[task], query[task]])
      labels = np.concatenate(
        [episodes.support.targets[task], episodes.query.targets[task]]
      )
      assert len(set(values)) == 15
      classes = (values - 1) // 12
      for label in range(3):
        assert len(set(classes[labels == label])) == 1
      seen |= set(values)
    assert seen == {
      _value(index, example)
      for index in range(first, first + 5)
      for example in range((5, 7, 6)[index % 3])
    }


@pytest.mark.slow
def test_equal_classes_are_those_of_few_shot_episodes(tmp_path):
  """Every example of a class is as likely: frequencies of the first one."""
  for name, first in (("train", 0), ("val", 3), ("test", 6)):
    _make(tmp_path / name, 3, counts=(4,), first=first)
  family = image_folder(tmp_path, ways=3, image_size=4).train
  images = family.args[0].examples
  plain = few_shot_episodes(images.reshape(3, 4, *images.shape[1:]), 3, 1, 1)
  counts = [
    np.bincount(_values(_drawn(f, 3000).support).ravel(), minlength=36)
    for f in (family, plain)
  ]
  for count in counts:
    # 9000 draws of 12 values: 750 each, with a deviation of about 26.
    assert np.all(np.abs(count[count > 0] - 750) < 130)
  np.testing.assert_array_equal(counts[0] > 0, counts[1] > 0)


@pytest.mark.slow
def test_classes_not_set_apart_are_divided_without_rest(tmp_path):
  _make(tmp_path, 20)
  found = []
  for family in image_folder(tmp_path, ways=2, image_size=4):
    values = _values(_drawn(family, 300).query)
    found.append(set(((values - 1) // 12).ravel()))
  assert [len(classes) for classes in found] == [13, 3, 4]
  assert set.union(*found) == set(range(20))
  other = image_folder(tmp_path, ways=2, image_size=4, split_seed=1).train
  values = _values(_drawn(other, 300).query)
  assert set(((values - 1) // 12).ravel()) != found[0]


@pytest.mark.slow
def test_one_coloured_image_makes_three_channels_everywhere(tmp_path):
  for name, first in (("train", 0), ("val", 3), ("test", 6)):
    mode = "RGB" if name == "val" else "L"
    _make(tmp_path / name, 3, mode=mode, first=first)
  for family in image_folder(tmp_path, ways=2, image_size=4):
    assert _drawn(family).support.inputs.shape[-1] == 3


def test_pixels_of_16_bits_keep_their_greys(tmp_path):
  folder = tmp_path / "class"
  folder.mkdir()
  deep = np.full((4, 4), 257 * 100, np.uint16)
  Image.fromarray(deep).save(folder / "deep.png")
  images = read_images([folder], 4)
  np.testing.assert_array_equal(images.images, 100)
  Image.fromarray(deep.astype(np.int32)).save(folder / "deeper.tif")
  with pytest.raises(ValueError, match="deeper.tif: pixels of 32 bits, must"):
    read_images([folder], 4)


@pytest.mark.slow
def test_training_may_have_more_ways_than_the_smaller_splits(tmp_path):
  _make(tmp_path, 20)  # 13, 3 and 4 of them.
  splits = image_folder(tmp_path, ways=10, eval_ways=2, image_size=4)
  shapes = [_drawn(s, 1).support.targets.shape for s in splits]
  assert shapes == [(1, 10), (1, 2), (1, 2)]


def test_fingerprint_is_of_the_files(tmp_path):
  one, other = (_make(tmp_path / name, 20) for name in ("one", "other"))
  before = fingerprint(one)
  assert before.startswith("one-")
  assert before[4:] == fingerprint(other)[6:]
  (one / "class_03" / "0.png").rename(one / "class_03" / "9.png")
  assert fingerprint(one) != before


def _no_image(root):
  _make(root, 20)
  (root / "class_03/7.png").write_text("text")
  return r".*class_03/7\.png is no image: remove it\. .*"


def _small_class(root):
  for name, first in (("train", 0), ("val", 5), ("test", 10)):
    _make(root / name, 5, first=first)
  for example in range(1, 7):
    (root / f"val/class_07/{example}.png").unlink()
  return (
    r".*together at most 1, .*validation split .*smallest is .*class_07\.\)"
  )


def _few_classes(root):
  _make(root, 6)
  return ".*ways=2: must be at most 1, .*"


def _no_test(root):
  for name in ("train", "val"):
    _make(root / name, 5)
  return f"--data_dir={root}: no classes for the split 'test'; give folders .*"


@pytest.mark.parametrize(
  "make", [_no_image, _small_class, _few_classes, _no_test]
)
def test_folder_that_does_not_do_is_named(make, tmp_path):
  message = make(tmp_path)
  with pytest.raises(ValueError, match=f"^{message}$"):
    image_folder(tmp_path, ways=2, shots=1, query_shots=1, image_size=4)


def test_folder_of_archives_is_none_of_images(tmp_path):
  (tmp_path / "images_background.zip").touch()
  (tmp_path / "notes").mkdir()
  assert not is_image_folder(tmp_path)
  assert not is_image_folder(tmp_path / "nowhere")
  assert not is_image_folder(None)
  _make(tmp_path, 1)
  assert is_image_folder(tmp_path)
