"""The data of `few_shot` by its flags, and tests on other data.

In a process of its own, for the flags. Images are of one grey everywhere, by
which they are known.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metajax.tasks.cifar100_classes import split_classes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
import jax, numpy as np
from experiments.shared import image_data, image_sets
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.tasks import cifar100
from metajax.tasks.cifar100_files import Cifar100
from metajax.tasks.cifar100_classes import superclass_labels
from metajax.tasks.omniglot import OmniglotImages

define_data_dir()

def omniglot(data_dir, size=28):
  images = np.full((1623, 20, size, size, 1), 55, np.uint8)
  return OmniglotImages(images, np.full(1623, "Greek"), np.ones(1623, bool))

def cifar(data_dir):
  # Class i has red i, green 2 i and blue 100.
  fine = np.repeat(np.arange(100), 4)
  colours = np.stack([fine, 2 * fine, np.full(400, 100)], -1).astype(np.uint8)
  images = np.broadcast_to(colours[:, None, None], (400, 32, 32, 3))
  return Cifar100(images, fine, np.asarray(superclass_labels())[fine])

module = sys.modules["metajax.tasks.omniglot"]
module.load_omniglot = image_sets.load_omniglot = omniglot
cifar100.load_cifar100 = cifar
def same_tasks(data):
  # Whether the tasks that are made anew are the test tasks, and the images
  # those of the test classes.
  family = data.test.tasks(FLAGS.ways, FLAGS.shots)
  one, other = (
    jax.jit(f)(jax.random.key(5)).support.inputs
    for f in (family, data.splits.test)
  )
  episode = jax.eval_shape(data.test.tasks(2, 1), jax.random.key(0))
  images = data.test.images()
  return [
    bool((one == other).all()),
    episode.support.inputs.shape[0],
    len(images.names) == len(np.unique(images.labels)) > 2,
  ]

found = []
for flags in json.loads(sys.argv[1]):
  FLAGS.unparse_flags()
  for name in FLAGS:
    FLAGS[name].unparse()
  FLAGS(["test", *flags])
  data = image_data.load(FLAGS.ways, FLAGS.train_ways or FLAGS.ways)
  shapes, stored, test, support = [], [], None, []
  for family in (data.splits.train, data.splits.test):
    episode = jax.eval_shape(family, jax.random.key(0))
    shapes.append(episode.query.inputs.shape)
    support.append(episode.support.inputs.shape)
    images = max(jax.tree.leaves(family), key=lambda x: x.size)
    assert images.dtype == np.uint8
    pixels = np.asarray(images)[..., 0, 0, :].reshape(-1, images.shape[-1])
    stored.append(np.unique(pixels, axis=0).tolist())
  if data.channels and data.eval_fingerprint:
    test = jax.jit(data.splits.test)(jax.random.key(1)).query.inputs
    test = test[:, 0, 0].tolist()
  found.append({
    "protocol": data.protocol,
    "told": [data.fingerprint, data.eval_fingerprint],
    "inverted": data.inverted,
    "channels": data.channels,
    "shapes": shapes,
    "support": support,
    "remade": same_tasks(data),
    "train": stored[0],
    "test": stored[1],
    "drawn": test,
  })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """What came of each of these flags, by a name."""
  root = tmp_path_factory.mktemp("data")
  for name, first in (("grey", 10), ("other", 60)):
    for i in range(25):
      folder = root / name / f"{i:02}"
      folder.mkdir(parents=True)
      for j in range(2):
        Image.new("L", (8, 8), first + i).save(folder / f"{j}.png")
  small = ["--ways=3", "--query_shots=1"]
  grey, other = f"--data_dir={root / 'grey'}", f"{root / 'other'}"
  runs = {
    "folder": [grey, "--image_size=6"],
    "omniglot": [],
    "several_shots": ["--train_shots=2,5"],
    "cifar_fs": ["--data=cifar_fs", "--train_ways=7"],
    "plain": ["--data=cifar_fs", "--nostandardize", "--image_size=16"],
    "cifar_on_folder": ["--data=cifar_fs", f"--eval_data_dir={other}"],
    "folder_on_fc100": [grey, "--image_size=6", "--eval_data=fc100"],
    "folder_on_omniglot": [grey, "--image_size=6", "--eval_data=omniglot"],
    "omniglot_on_folder": ["--image_size=6", f"--eval_data_dir={other}"],
    "folder_on_folder": [
      *[grey, "--image_size=6", "--standardize"],
      f"--eval_data_dir={other}",
    ],
  }
  done = subprocess.run(
    [
      *[sys.executable, "-c", SCRIPT],
      json.dumps([small + flags for flags in runs.values()]),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return dict(zip(runs, json.loads(done.stdout), strict=True))


def _are_greys(values, first):
  """Whether stored pixels are of the 25 greys from the first one."""
  number = np.asarray(values) - first
  return np.all((number >= 0) & (number < 25))


@pytest.mark.slow
def test_without_names_data_are_what_they_were(found):
  folder, omniglot = found["folder"], found["omniglot"]
  assert folder["shapes"] == [[3, 6, 6, 1], [3, 6, 6, 1]]
  assert _are_greys(folder["train"], 10)
  assert _are_greys(folder["test"], 10)
  assert folder["protocol"]["data"] == folder["told"][0]
  assert folder["told"][0].startswith("grey-") and folder["told"][1] is None
  assert folder["protocol"]["split"] == "folder"
  assert not folder["inverted"] and folder["protocol"]["rotations"] == 1
  assert omniglot["told"] == [None, None] and omniglot["inverted"]
  assert omniglot["protocol"]["data"] == "omniglot"
  assert omniglot["protocol"]["rotations"] == 4
  assert omniglot["shapes"][0] == [3, 28, 28, 1]
  assert "eval_data" not in omniglot["protocol"]


@pytest.mark.slow
def test_cifar_is_standardised_unless_told_otherwise(found):
  data, plain = found["cifar_fs"], found["plain"]
  assert data["shapes"] == [[7, 32, 32, 3], [3, 32, 32, 3]]
  # By hand: the training classes are equally many, of red i, green 2 i.
  red = np.asarray(split_classes("cifar_fs")[0]) / 255
  mean, deviation = data["channels"]
  np.testing.assert_allclose(mean, [red.mean(), 2 * red.mean(), 100 / 255])
  np.testing.assert_allclose(deviation, [red.std(), 2 * red.std(), 1])
  assert sorted(x[0] for x in data["test"]) == split_classes("cifar_fs")[2]
  assert data["protocol"]["channels"]["mean"] == mean
  assert data["protocol"]["data"] == "cifar_fs"
  assert data["told"][0].startswith("cifar_fs-")
  assert plain["channels"] is None
  assert plain["shapes"][0] == [3, 16, 16, 3]
  assert plain["test"] == data["test"]


@pytest.mark.slow
def test_training_may_have_other_shots_than_the_test(found):
  data = found["several_shots"]
  assert [shape[0] for shape in data["support"]] == [3 * 5, 3]
  assert [shape[0] for shape in data["shapes"]] == [3, 3]
  assert data["protocol"]["train_shots"] == [2, 5]
  assert found["omniglot"]["protocol"]["train_shots"] == 1


@pytest.mark.slow
def test_test_tasks_of_other_sizes_are_of_the_same_images(found):
  for name, data in found.items():
    assert data["remade"] == [True, 2, True], name


@pytest.mark.slow
def test_test_images_become_what_the_training_images_are(found):
  """Grey ones coloured, and standardised by the training's numbers."""
  data = found["cifar_on_folder"]
  assert data["shapes"] == [[3, 32, 32, 3], [3, 32, 32, 3]]
  assert data["channels"] == found["cifar_fs"]["channels"]
  assert _are_greys(data["test"], 60)
  mean, deviation = map(np.asarray, data["channels"])
  pixels = 255 * (np.asarray(data["drawn"]) * deviation + mean)
  np.testing.assert_allclose(
    pixels, np.rint(pixels[:, :1]) * [1, 1, 1], atol=1e-3
  )
  assert _are_greys(np.rint(pixels), 60)
  assert data["told"][1].startswith("other-")
  assert data["protocol"]["eval_data"] == data["told"][1]
  both = found["folder_on_folder"]
  drawn = np.asarray(both["drawn"]) * both["channels"][1] + both["channels"][0]
  assert _are_greys(np.rint(255 * drawn), 60)


@pytest.mark.slow
def test_coloured_test_images_become_grey_where_training_is(found):
  """By their luminance, of class i: 0.299 i + 0.587 * 2 i + 0.114 * 100."""
  data = found["folder_on_fc100"]
  assert data["shapes"][1] == [3, 6, 6, 1]
  greys = {int(np.rint(1.473 * i + 11.4)) for i in range(100)}
  assert {x for (x,) in data["test"]} <= greys
  assert data["protocol"]["eval_data"] == "fc100"


@pytest.mark.slow
def test_polarity_is_that_of_the_training(found):
  """Omniglot's ink is 1 in training on it, and dark beside other images."""
  on_folder = found["omniglot_on_folder"]
  assert _are_greys(255 - np.asarray(on_folder["test"]), 60)
  on_omniglot, omniglot = found["folder_on_omniglot"], found["omniglot"]
  assert on_omniglot["test"] == [[200]] and omniglot["test"] == [[55]]
  assert on_omniglot["shapes"][1] == [3, 6, 6, 1]
