"""The official runs, by what is published of them, and damaged archives."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

from metajax.tasks.omniglot import load_omniglot
from metajax.tasks.one_shot_runs import (
  ARCHIVE,
  MINIMAL,
  load_one_shot_runs,
)

DATA = os.environ.get("METAJAX_DATA_DIR")
needs_runs = pytest.mark.skipif(
  not DATA or not (Path(DATA) / ARCHIVE).is_file(),
  reason=f"no {ARCHIVE} in METAJAX_DATA_DIR",
)


def _runs(folder, change=lambda run, labels: labels, image=None):
  """Writes runs in which drawing i of a run is i + 1 pixels of ink."""
  with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
    for run in range(1, 21):
      order = np.random.default_rng(run).permutation(20)
      labels = [
        f"run{run:02d}/test/item{i + 1:02d}.png "
        f"run{run:02d}/training/class{c + 1:02d}.png"
        for i, c in enumerate(order)
      ]
      archive.writestr(
        f"run{run:02d}/class_labels.txt", "\n".join(change(run, labels)) + "\n"
      )
      for i, c in enumerate(order):
        for name, ink in (("test/item", c), ("training/class", i)):
          pixels = np.full((105, 105), 255, np.uint8)
          pixels.flat[: ink + 1] = 0
          content = io.BytesIO()
          Image.fromarray(pixels).save(content, "png")
          member = f"run{run:02d}/{name}{i + 1:02d}.png"
          archive.writestr(member, image or content.getvalue())


def test_each_drawing_meets_its_own_label(tmp_path):
  _runs(tmp_path)
  support, query = load_one_shot_runs(tmp_path, image_size=105)
  assert support.inputs.shape == query.inputs.shape == (20, 20, 105, 105, 1)
  np.testing.assert_array_equal(support.targets, [np.arange(20)] * 20)
  # As much ink as its label says, in both.
  for batch in (support, query):
    np.testing.assert_allclose(
      batch.inputs.sum((2, 3, 4)), batch.targets + 1, rtol=1e-6
    )
  assert not np.array_equal(query.targets[0], query.targets[1])


@pytest.mark.parametrize(
  "options, message",
  [
    ({"change": lambda run, labels: labels[:-1]}, "run 1 is no run of 20"),
    (
      {"change": lambda run, labels: labels[:-1] + labels[:1]},
      "run 1 is no run of 20",
    ),
    ({"image": b"none"}, "run01/training/class01.png is no image"),
  ],
)
def test_archive_of_something_else_is_refused(options, message, tmp_path):
  _runs(tmp_path, **options)
  with pytest.raises(ValueError, match=f"{ARCHIVE}: {message}.*fetch it again"):
    load_one_shot_runs(tmp_path)


def test_archive_that_is_missing_or_damaged_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="is not there; fetch it from"):
    load_one_shot_runs(tmp_path)
  (tmp_path / ARCHIVE).write_bytes(b"nothing")
  with pytest.raises(ValueError, match=f"{ARCHIVE}: damaged"):
    load_one_shot_runs(tmp_path)
  with zipfile.ZipFile(tmp_path / ARCHIVE, "w") as archive:
    archive.writestr("run01/other.txt", "")
  with pytest.raises(ValueError, match=f"{ARCHIVE}: damaged"):
    load_one_shot_runs(tmp_path)


@pytest.mark.slow
@needs_runs
@pytest.mark.parametrize("image_size", [0, 106])
def test_image_size_out_of_range_is_named(image_size, tmp_path):
  with pytest.raises(ValueError, match=f"^image_size={image_size}: .*1 to 105"):
    load_one_shot_runs(tmp_path, image_size)


def test_error_of_the_hausdorff_distance_is_the_authors():
  """Their demo prints 38.8 % of the 400 trials."""
  support, query = load_one_shot_runs(image_size=105)

  def points(image):
    ink = np.argwhere(np.asarray(image)[..., 0] > 0.5).astype(float)
    return KDTree(ink - ink.mean(axis=0))

  def distance(a, b):
    return max(x.query(y.data)[0].mean() for x, y in ((a, b), (b, a)))

  errors = 0
  for run in range(20):
    given = [points(x) for x in support.inputs[run]]
    for x, target in zip(query.inputs[run], query.targets[run], strict=True):
      item = points(x)
      found = np.argmin([distance(item, other) for other in given])
      errors += found != target
  assert errors == 155  # 38.75 %


@pytest.mark.slow
@needs_runs
def test_minimal_sets_are_background_alphabets():
  data = load_omniglot()
  background = set(data.alphabets[data.is_background])
  for name, size in (("small1", 136), ("small2", 156)):
    assert len(MINIMAL[name]) == 5
    assert set(MINIMAL[name]) <= background
    assert np.isin(data.alphabets, MINIMAL[name]).sum() == size
