"""Features are those of the function, and a file is whole and of one key."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks import encoded, labelled_episodes
from metajax.tasks import features as module
from metajax.tasks.image_files import Images
from metajax.tasks.image_splits import ImageSplits, episodes
from metajax.tasks.stored_images import StoredImages

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)
MATRIX = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)


class Backbone:
  """A linear map of pixels, which counts its calls."""

  def __init__(self):
    self.sizes = []

  def __call__(self, images):
    self.sizes.append(len(images))
    return images.reshape(len(images), -1).astype(np.float32) @ MATRIX


def _true():
  return IMAGES.reshape(11, -1).astype(np.float64) @ MATRIX.astype(np.float64)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 256])
def test_features_are_those_of_the_function(batch_size):
  backbone = Backbone()
  found = encoded(IMAGES, backbone, batch_size=batch_size)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, _true(), rtol=1e-4, atol=0.1)
  # Each call has the same size, so that a compiled function is compiled once.
  assert set(backbone.sizes) == {min(batch_size, 11)}


class Tensor:
  """What PyTorch's tensors do: `np.asarray` fails until they are detached."""

  def __init__(self, values, plain=False):
    self.values, self.plain = values, plain

  def detach(self):
    return Tensor(self.values, plain=True)

  def float(self):
    return self

  cpu = float

  def __array__(self, dtype=None, copy=None):
    if not self.plain:
      raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
    return np.asarray(self.values, dtype)


def test_other_libraries_compute_them():
  @jax.jit
  def by_jax(images):
    return images.reshape(len(images), -1).astype(jnp.float32) @ MATRIX

  backbone = Backbone()
  for function in (by_jax, lambda images: Tensor(backbone(images))):
    found = encoded(IMAGES, function, batch_size=4)
    np.testing.assert_allclose(found, _true(), rtol=1e-4, atol=0.1)


def test_they_are_computed_once_for_each_network_and_data(tmp_path):
  first, again = Backbone(), Backbone()
  found = encoded(IMAGES, first, name="a/b", cache=tmp_path)
  stored = encoded(IMAGES, again, name="a/b", cache=tmp_path, batch_size=3)
  np.testing.assert_array_equal(stored, found)
  assert (len(first.sizes), len(again.sizes)) == (1, 0)
  encoded(IMAGES, again, name="c", cache=tmp_path)
  changed = IMAGES.copy()
  changed[-1, -1, -1, -1] ^= 1
  encoded(changed, again, name="c", cache=tmp_path)
  encoded(IMAGES[:-1], again, name="c", cache=tmp_path)
  assert len(again.sizes) == 3
  assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
def test_splits_keep_labels_and_names_and_make_tasks(tmp_path):
  labels = np.repeat(np.arange(3), 4)[:11]
  images = Images(IMAGES, labels, ["ant", "bee", "cat"])
  splits = ImageSplits(images, images, images)
  backbone = Backbone()
  found = encoded(splits, backbone, name="a", cache=tmp_path)
  assert len(backbone.sizes) == 1  # The three splits have the same images.
  np.testing.assert_array_equal(found.test.labels, labels)
  assert found.test.names == images.names
  tasks = episodes(found, "features", ways=2, shots=1, query_shots=2).test
  plain = labelled_episodes(IMAGES, labels, 2, 1, 2)
  key = jax.random.key(0)
  np.testing.assert_allclose(
    tasks(key).query.inputs,
    255 * np.asarray(plain(key).query.inputs).reshape(4, -1) @ MATRIX,
    rtol=1e-3,
    atol=0.1,
  )


def test_images_on_a_disk_are_read_a_batch_at_a_time(tmp_path):
  rows = []

  def read(row):
    rows.append(row)
    return IMAGES[row]

  stored = StoredImages(read, IMAGES.shape)
  np.testing.assert_array_equal(
    encoded(stored, Backbone(), batch_size=4),
    encoded(IMAGES, Backbone(), batch_size=4),
  )
  assert rows == list(range(11))
  # A file of the same images in memory is found.
  encoded(IMAGES, Backbone(), name="a", cache=tmp_path)
  again = Backbone()
  encoded(stored, again, name="a", cache=tmp_path, batch_size=3)
  assert not again.sizes


@pytest.mark.parametrize(
  "rows",
  [
    3,
    -2,
    slice(8, None, -3),
    [[4, 1], [-1, 4]],
    np.arange(11) % 4 == 1,
    np.zeros(0, int),
  ],
  ids=str,
)
def test_images_on_a_disk_are_indexed_like_an_array(rows):
  stored = StoredImages(lambda row: IMAGES[row], IMAGES.shape)
  np.testing.assert_array_equal(stored[rows], IMAGES[rows])


@pytest.mark.parametrize("rows", [11, (0, 1), np.ones(3, bool), 1.0])
def test_rows_that_there_are_not_are_refused(rows):
  stored = StoredImages(lambda row: IMAGES[0], IMAGES.shape)
  with pytest.raises(IndexError):
    stored[rows]


def _file(folder):
  encoded(IMAGES, Backbone(), name="a", cache=folder)
  (file,) = folder.iterdir()
  return file


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_file_is_named(length, tmp_path):
  file = _file(tmp_path)
  file.write_bytes(file.read_bytes()[:length])
  with pytest.raises(ValueError, match=f"^{file}: damaged .*: remove it") as e:
    encoded(IMAGES, Backbone(), name="a", cache=tmp_path)
  assert "\n" not in str(e.value)


def test_a_flipped_bit_is_found(tmp_path):
  file = _file(tmp_path)
  content = bytearray(file.read_bytes())
  content[content.index(b"NUMPY") + 200] ^= 1
  file.write_bytes(content)
  with pytest.raises(ValueError, match="damaged"):
    encoded(IMAGES, Backbone(), name="a", cache=tmp_path)


def test_the_file_of_another_network_is_refused(tmp_path):
  file = _file(tmp_path)
  file.rename(file.with_name(file.name.replace("_a_", "_b_")))
  with pytest.raises(ValueError, match="features by 'a' of .* must be by 'b'"):
    encoded(IMAGES, Backbone(), name="b", cache=tmp_path)


def test_a_full_disk_leaves_no_part(tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
  try:
    with pytest.raises(OSError, match="cannot be written .*: make room"):
      encoded(IMAGES, Backbone(), name="a", cache=tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not list(tmp_path.iterdir())


def test_room_is_looked_at_after_the_first_batch(tmp_path, monkeypatch):
  usage = type("Usage", (), {"free": 10})
  monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
  backbone = Backbone()
  with pytest.raises(OSError, match="need 0 MB, 0 MB are free: make room"):
    encoded(IMAGES, backbone, name="a", cache=tmp_path, batch_size=2)
  assert len(backbone.sizes) == 1


@pytest.mark.parametrize(
  "function, options, message",
  [
    (lambda x: x[:2], {}, r"shape \(2, 4, 4, 3\) for a batch of 11, must be"),
    (lambda x: np.full((len(x), 2), np.nan), {}, "inputs 0 to 10 are not fin"),
    (Backbone(), {"batch_size": 0}, "batch_size=0: must be 1 or more"),
    (Backbone(), {"cache": "x"}, "name=None: with a cache, must be the name"),
  ],
)
def test_bad_arguments_are_named(function, options, message):
  with pytest.raises(ValueError, match=message):
    encoded(IMAGES, function, **options)


def test_no_inputs_are_refused():
  with pytest.raises(ValueError, match=r"inputs: shape \(0, 3\), must be"):
    encoded(np.zeros((0, 3)), Backbone())
