"""Tasks of images on a disk are those of the same images in memory."""

import functools
import os

import jax
import numpy as np
import pytest
from PIL import Image

from metajax.tasks import few_shot_episodes, image_folder
from metajax.tasks.augmentation import augmented, random_crop, random_flip
from metajax.tasks.image_folder import bytes_in_memory, read_image_folder
from metajax.tasks.image_splits import episodes
from metajax.tasks.standardized import channels_of
from metajax.training.streaming import keys_on_host
from metajax.types import Stream

SIZE = 6
KEYS = jax.random.split(jax.random.key(3), 12)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Classes of 3 to 6 images, some grey, none of which is a plain colour."""
  root = tmp_path_factory.mktemp("files")
  rng = np.random.default_rng(0)
  for split, count in (("train", 6), ("val", 3), ("test", 3)):
    for label in range(count):
      folder = root / split / f"{split}_{label}"
      folder.mkdir(parents=True)
      for number in range(3 + label % 4):
        pixels = rng.integers(0, 256, (8, 7, 3), np.uint8)
        image = Image.fromarray(pixels[..., 0] if number == 1 else pixels)
        image.save(folder / f"{number}.png")
  return root


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
  """Images in npy files, with classes that are not in order."""
  root = tmp_path_factory.mktemp("arrays")
  rng = np.random.default_rng(1)
  for split in ("train", "val", "test"):
    labels = rng.permutation(np.repeat(["b", "c", "a"], (4, 5, 3)))
    images = rng.integers(0, 256, (12, 7, 7), np.uint8)
    np.save(root / f"{split}_images.npy", images)
    np.save(root / f"{split}_labels.npy", labels)
  return root


FORMS = {
  "plain": {"shots": 1, "query_shots": 2},
  "turned": {"shots": 1, "query_shots": 2, "num_rotations": 4},
  "varied": {"ways": (2, 3), "shots": (1, 2), "query_shots": 1},
  "small": {"shots": 2, "query_shots": 3, "small_classes": True},
  "standardized": {"shots": 1, "query_shots": 1, "standardize": True},
}


def _assert_same(stream, family, *, called=False):
  """Read ahead, and by callbacks if the stream is `called`, to the last bit."""
  assert isinstance(stream, Stream) and not isinstance(family, Stream)
  expected = jax.device_get(jax.jit(jax.vmap(family))(KEYS))
  ahead = stream.ahead(keys_on_host(KEYS), range(len(KEYS)))
  data = jax.tree.map(lambda *x: np.stack(x), *ahead)
  assert max(jax.tree.leaves(data), key=lambda x: x.nbytes).dtype == np.uint8
  found = jax.jit(jax.vmap(stream.finish))(data, KEYS)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  if called:
    found = jax.jit(jax.vmap(stream))(KEYS)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    one = jax.tree.map(lambda x: x[5], expected)
    jax.tree.map(np.testing.assert_array_equal, stream(KEYS[5]), one)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_tasks_of_files_are_those_in_memory(form, files):
  make = functools.partial(
    image_folder, files, **{"ways": 3, "image_size": SIZE} | FORMS[form]
  )
  # Classes and sizes differ between the splits.
  streams, families = make(stream=True), make()
  called = form == "varied"
  _assert_same(streams.train, families.train, called=called)
  if form == "standardized":
    _assert_same(streams.test, families.test)


@pytest.mark.parametrize("image_size", [None, 5])
def test_tasks_of_arrays_are_those_in_memory(image_size, arrays):
  make = functools.partial(
    image_folder, arrays, ways=3, query_shots=2, image_size=image_size
  )
  _assert_same(make(stream=True).test, make().test)


@pytest.mark.slow
def test_augmentations_are_those_in_memory(files):
  """They are drawn on the device, by the same key."""

  def make(stream):
    family = image_folder(files, ways=3, image_size=SIZE, stream=stream).train
    return augmented(family, random_crop(2), random_flip())

  _assert_same(make(True), make(False))


@pytest.mark.slow
def test_draws_are_of_the_precision_of_the_program(files):
  """JAX draws other integers with 64 bits, and reads in other threads."""
  family = image_folder(files, ways=3, image_size=SIZE)
  stream = image_folder(files, ways=3, image_size=SIZE, stream=True)
  with jax.enable_x64(True):
    _assert_same(stream.train, family.train)


def test_what_is_read_begins_at_any_number(files):
  stream = image_folder(files, ways=3, image_size=SIZE, stream=True).train
  key_of = keys_on_host(KEYS)
  whole = list(stream.ahead(key_of, range(len(KEYS))))
  part = list(stream.ahead(key_of, range(7, len(KEYS), 2)))
  assert len(whole) == len(KEYS)
  jax.tree.map(np.testing.assert_array_equal, part, whole[7::2])


@pytest.mark.slow
def test_processes_read_what_threads_read(files):
  with jax.enable_x64(True):  # A setting that they are told.
    made = []
    for workers in (0, 2):
      splits = image_folder(
        files, ways=3, image_size=SIZE, stream=True, workers=workers
      )
      made.append(list(splits.train.ahead(keys_on_host(KEYS), range(9))))
  jax.tree.map(np.testing.assert_array_equal, *made)


def test_channels_are_those_in_memory(files):
  stored, held = (
    read_image_folder(files, SIZE, stored=x) for x in (True, False)
  )
  assert channels_of(stored.train.images) == channels_of(held.train.images)
  assert stored.train.images.shape == held.train.images.shape
  np.testing.assert_array_equal(stored.test.images[1:4], held.test.images[1:4])
  assert bytes_in_memory(files, SIZE) == sum(x.images.nbytes for x in held)


def test_coloured_images_become_grey_by_their_luminance(files):
  stored, held = (
    read_image_folder(files, SIZE, stored=x) for x in (True, False)
  )
  grey = stored.test.images.in_channels(1)
  expected = np.rint(held.test.images @ np.array([0.299, 0.587, 0.114]))
  np.testing.assert_array_equal(grey[:][..., 0], expected)


@pytest.mark.slow
def test_pixels_of_masked_examples_are_not_read(files):
  """Class 0 has 3 images, of which a task needs 2 + 3."""
  images = read_image_folder(files, SIZE, stored=True)
  read = []

  def noted(row):
    read.append(row)
    return np.full((SIZE, SIZE, 3), 7, np.uint8)

  stored = images.train.images.__class__(noted, images.train.images.shape)
  splits = episodes(
    images._replace(train=images.train._replace(images=stored)),
    "here",
    ways=6,
    shots=2,
    query_shots=3,
    eval_ways=2,
    eval_query_shots=1,
    small_classes=True,
  )
  support, query = splits.train(KEYS[0])
  assert len(read) == len(set(read)) == 3 + 4 + 5 + 5 + 3 + 4
  assert int(support.mask.sum() + query.mask.sum()) == 24


def test_images_are_of_the_beginning_of_the_run(tmp_path):
  for label in range(10):
    (tmp_path / f"{label}").mkdir()
    for number in range(2):
      image = Image.new("L", (4, 4), 10 * label + number)
      image.save(tmp_path / f"{label}" / f"{number}.png")
  make = functools.partial(
    image_folder, tmp_path, ways=2, image_size=4, stream=True
  )
  stream = make().train
  paths = sorted(tmp_path.rglob("*.png"))
  for path in paths:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  with pytest.raises(
    ValueError, match=r"\.png has changed since the run began"
  ):
    next(stream.ahead(keys_on_host(KEYS), range(1)))
  stream = make().train
  for path in paths:
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:40].ljust(stat.st_size, b"x"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  message = r"^/.*\.png is no image: remove it\."
  with pytest.raises(ValueError, match=message):
    next(stream.ahead(keys_on_host(KEYS), range(1)))
  with pytest.raises(ValueError, match=message):
    stream(KEYS[0])


def test_images_that_cannot_stay_on_the_disk_are_named(tmp_path, files):
  images = np.zeros((4, 3, 3), np.uint8)
  for split in ("train", "val", "test"):
    np.savez(tmp_path / f"{split}.npz", images=images, labels=[0, 0, 1, 1])
  with pytest.raises(ValueError, match=r"train\.npz: .*train_images\.npy"):
    image_folder(tmp_path, ways=2, stream=True)
  assert bytes_in_memory(tmp_path) == 0
  with pytest.raises(ValueError, match=r"ways=9: .*The train split has 6 cla"):
    image_folder(files, ways=9, stream=True)
  # Whose images do not suffice is told by the same words.
  with pytest.raises(ValueError, match=r"ways=9: .*"):
    few_shot_episodes(np.zeros((6, 3, 2)), 9, 1, 1)
