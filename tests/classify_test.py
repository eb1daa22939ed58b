"""Images of a folder are labelled by the few that are labelled."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from metajax import classify, recipes, saved
from metajax.learners import ANY_WAYS
from metajax.loaded import with_outputs
from metajax.tasks.standardized import Channels
from metajax.types import Batch

SHADES = {"dark": 20, "middle": 120, "light": 240}
MODEL = {"name": "conv4", "filters": 8, "num_blocks": 1} | {
  "normalization": "none",
  "strided": False,
}


@pytest.fixture
def folder(tmp_path):
  """Shades: two labelled images each, and four that are not."""
  draw = np.random.default_rng(0)

  def write(path, shade, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = shade + draw.integers(-10, 10, (6, 6))
    Image.fromarray(np.uint8(pixels)).convert(mode).save(path)

  for name, shade in SHADES.items():
    for i in range(2):
      write(tmp_path / "images" / name / f"{i}.png", shade)
    write(tmp_path / "images" / f"like_{name}.png", shade)
  write(tmp_path / "images" / "colour.png", SHADES["dark"], "RGB")
  return tmp_path / "images"


def _run(path, learner="prototypical", ways=3, inverted=False, channels=None):
  recipe = recipes.Recipe(
    learner,
    MODEL,
    ways,
    "cross_entropy",
    {"name": "sgd", "learning_rate": 0.1},
    1,
    1,
  )
  depth = 1 if channels is None else 3
  images = jax.ShapeDtypeStruct((8, 8, depth), jnp.dtype("float32"))
  params = recipes.build(recipe).init(
    jax.random.key(0), jnp.zeros((1, *images.shape))
  )
  saved.save(path, recipe, params, images, inverted=inverted, channels=channels)
  return path


@pytest.mark.slow
def test_coloured_images_are_standardised_as_in_training(folder, tmp_path):
  """What the learner sees is known by hand; the sheet has the images."""
  channels = Channels((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
  run = saved.load(_run(tmp_path, channels=channels))
  assert run.channels == channels and run.inputs.shape == (8, 8, 3)
  seen = []
  loaded = run._replace(
    adapt=lambda support: seen.append(support.inputs) or run.adapt(support)
  )
  found = classify.classify(loaded, folder)
  (support,) = seen
  assert support.shape == (6, 8, 8, 3)
  pixels = np.asarray(support[..., 0]) * 0.5 + 0.5
  np.testing.assert_allclose(support[..., 1], pixels - 0.25, atol=1e-6)
  np.testing.assert_allclose(support[..., 2], pixels / 2, atol=1e-6)
  assert 0 <= pixels.min() < 0.2 and 0.8 < pixels.max() <= 1
  assert found.images.min() >= 0 and found.images.max() <= 1
  assert (
    dict(zip([p.name for p in found.files], found.labels, strict=True))[
      "like_light.png"
    ]
    == "light"
  )


def test_learners_saved_before_there_were_channels_are_loaded(tmp_path):
  path = _run(tmp_path) / saved.LEARNER
  about = json.loads(path.read_text())
  assert about.pop("channels") is None
  path.write_text(json.dumps(about))
  assert saved.load(tmp_path).channels is None


@pytest.mark.parametrize("inverted", [False, True])
def test_images_get_the_label_of_their_shade(
  inverted, folder, tmp_path, capsys
):
  """By prototypes of random features: no training is needed for shades."""
  workdir = _run(tmp_path, inverted=inverted)
  out = tmp_path / "out"
  classify.main([str(workdir), str(folder), f"--out={out}"])
  rows = list(csv.DictReader((out / "labels.csv").read_text().splitlines()))
  found = {row["file"]: row["label"] for row in rows}
  expected = {f"like_{name}.png": name for name in SHADES}
  assert found == expected | {"colour.png": "dark"}
  assert all(0 <= float(row["probability"]) <= 1 for row in rows)
  assert (out / "labels.png").stat().st_size > 0
  assert "like_dark.png" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("learner", "spoil", "message"),
  [
    ("maml", lambda f: None, "3 classes, but the learner tells 2 apart"),
    ("prototypical", lambda f: f / "nothing", "nothing: no such folder"),
    ("prototypical", lambda f: f / "dark", "0 sub-folders with images"),
    (
      "prototypical",
      lambda f: (f / "broken.png").write_text("no image") and None,
      r"broken.png is no image",
    ),
  ],
)
def test_what_does_not_fit_is_named(
  learner, spoil, message, folder, tmp_path, capsys
):
  workdir = _run(tmp_path, learner, ways=2)
  given = spoil(folder) or folder
  with pytest.raises(SystemExit) as ended:
    classify.main([str(workdir), str(given), f"--out={tmp_path / 'out'}"])
  assert ended.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert message in error
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("learner", sorted(ANY_WAYS))
def test_learners_of_any_number_of_classes_take_more(learner, folder, tmp_path):
  """Three shades, by a learner that was trained on two classes."""
  loaded = saved.load(_run(tmp_path, learner, ways=2))
  found = classify.classify(loaded, folder)
  names = [path.name for path in found.files]
  labels = dict(zip(names, found.labels, strict=True))
  assert (1 / 3 <= found.probabilities).all() and set(labels) == set(names)
  assert (found.probabilities <= 1).all()
  # Shades lie on a line, which only the nearest mean divides in three.
  if learner == "prototypical":
    assert {labels[f"like_{name}.png"] == name for name in SHADES} == {True}


def test_a_class_that_was_not_trained_is_refused(tmp_path):
  loaded = saved.load(_run(tmp_path, ways=2))
  support = Batch(jnp.zeros((3, 8, 8, 1)), jnp.arange(3))
  with pytest.raises(ValueError, match="class 2 given, must be 0 to 1"):
    loaded.adapt(support)
  more = with_outputs(loaded, 3)
  assert np.isfinite(more.predict(more.adapt(support), support.inputs)).all()
  maml = saved.load(_run(tmp_path, "maml", ways=2))
  with pytest.raises(ValueError, match="maml was trained for 2 classes; only"):
    with_outputs(maml, 3)


def test_damaged_weights_are_no_saved_learner(tmp_path):
  _run(tmp_path)
  assert saved.is_whole(tmp_path)
  path = tmp_path / saved.META_PARAMS
  path.write_bytes(path.read_bytes()[:-8])
  assert not saved.is_whole(tmp_path)
  path.unlink()
  assert not saved.is_whole(tmp_path)


def test_a_learner_is_shown_without_its_arrays(tmp_path):
  shown = repr(saved.load(_run(tmp_path)))
  assert shown.startswith("Loaded(prototypical, ") and len(shown) < 100
