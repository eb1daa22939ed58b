"""Pictures of inputs of any size, and tables of any estimates."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import maml
from metajax.losses import cross_entropy
from metajax.models.mlp import MLP
from metajax.runs import plots
from metajax.tasks.few_shot import few_shot_episodes
from metajax.tasks.standardized import Channels, standardized
from metajax.types import Batch, Episode, MetaLearner

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 6, 3)])
def test_images_of_any_size_and_colour_are_drawn(shape, tmp_path):
  images = jnp.full((4, 3, *shape), 255, jnp.uint8)
  tasks = few_shot_episodes(images, 2, 1, 1)
  learner = maml(MLP(2, (2,)), cross_entropy, optax.sgd(0.1), 1)
  key = jax.random.key(0)
  params = learner.init(key, tasks(key).support.inputs)
  path = tmp_path / "episodes.png"
  plots.image_episodes(path, learner, params, tasks, key, 2, columns=2)
  assert path.stat().st_size > 0


@pytest.mark.slow
def test_standardised_images_are_drawn_as_they_look(tmp_path, monkeypatch):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 4, 3), np.uint8)
  channels = Channels((0.5, 0.25, 0.1), (0.5, 2.0, 0.2))
  tasks = standardized(few_shot_episodes(pixels, 2, 1, 1), channels)
  learner = maml(MLP(2, (2,)), cross_entropy, optax.sgd(0.1), 1)
  key = jax.random.key(0)
  params = learner.init(key, tasks(key).support.inputs)
  drawn = []
  monkeypatch.setattr(
    plots, "_show", lambda axes, image, *how: drawn.append(255 * image)
  )
  plots.image_episodes(
    tmp_path / "episodes.png",
    *(learner, params, tasks, key, 2),
    columns=2,
    channels=channels,
  )
  found = {np.rint(image).astype(np.uint8).tobytes() for image in drawn}
  assert found == {image.tobytes() for image in pixels.reshape(4, 4, 4, 3)}


def test_learners_in_pictures_do_not_draw_by_the_keys_of_the_tasks(
  tmp_path,
):
  """The noise of an adaptation would be that of its task."""
  of_tasks, of_learner = [], []

  def seen(keys, rng):
    data = jax.random.key_data(rng)
    jax.debug.callback(lambda x: keys.append(tuple(map(int, x))), data)

  def tasks(rng):
    seen(of_tasks, rng)
    x = jnp.zeros((2, 1, 1, 1))
    return Episode(Batch(x, jnp.arange(2)), Batch(x, jnp.arange(2)))

  def adapt(params, support, rng):
    seen(of_learner, rng)
    return support

  learner = MetaLearner(
    lambda rng, inputs: (),
    adapt,
    lambda support, inputs: jnp.eye(2) + inputs[:, 0, 0],
    lambda params, episodes, rng: (params, {}),
  )
  key, path = jax.random.key(0), tmp_path / "episodes.png"
  plots.image_episodes(path, learner, (), tasks, key, 2, columns=4)
  jax.effects_barrier()
  assert len({*of_tasks}) == len({*of_learner}) == 2
  assert not {*of_tasks} & {*of_learner}


def _drawn(tmp_path, monkeypatch, lines, **options):
  """The axes of a learning curve of "loss" and "validation/loss"."""
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text)
  figures = []
  monkeypatch.setattr(
    plots, "save", lambda figure, path: figures.append(figure)
  )
  metrics = {"loss": "training", "validation/loss": "validation"}
  plots.learning_curve(tmp_path, metrics, "loss", **options)
  figures[0].canvas.draw()
  return figures[0].axes[0]


@pytest.mark.parametrize("num_points", [1, 2])
@pytest.mark.parametrize("log", [False, True])
def test_few_points_are_seen_and_have_numbers_beside_them(
  num_points, log, tmp_path, monkeypatch
):
  lines = [{"step": 50 * i, "loss": 3.0 - i} for i in range(1, num_points + 1)]
  axes = _drawn(tmp_path, monkeypatch, lines, log=log)
  (line,) = axes.get_lines()  # There was no validation.
  assert line.get_marker() == "o"
  assert [t.get_text() for t in axes.get_legend().get_texts()] == ["training"]
  left, right = axes.get_xlim()
  assert left == 0
  assert right >= 50 * num_points
  for axis in (axes.xaxis, axes.yaxis):
    (low, high), ticks = axis.get_view_interval(), axis.get_majorticklocs()
    assert sum(low <= tick <= high for tick in ticks) >= 3


def test_a_run_without_a_line_has_a_picture_all_the_same(tmp_path, monkeypatch):
  assert not _drawn(tmp_path, monkeypatch, []).get_lines()


def test_losses_over_powers_of_ten_are_drawn_so(tmp_path, monkeypatch):
  lines = [{"step": i, "loss": 100.0 / i**2} for i in range(1, 60)]
  axes = _drawn(tmp_path, monkeypatch, lines, log=True)
  assert axes.get_yscale() == "log"
  assert axes.get_lines()[0].get_marker() == "."


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("others, scale", [([], "linear"), ([3.0], "log")])
def test_values_without_a_logarithm_do_not_stop_a_picture(
  bad, others, scale, tmp_path
):
  figure, axes = plots.pyplot().subplots()
  axes.set(xscale="log", yscale="log")
  axes.plot(range(1, 3 + len(others)), [bad, bad, *others])
  plots.save(figure, tmp_path / "picture.png")
  assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
  assert axes.get_yscale() == scale


# In a process of its own, for the flags.
TABLES = """
import pathlib, sys
from metajax.evaluation import OverSeeds
from metajax.runs import report
from metajax.runs.flags import FLAGS
FLAGS(["test", "--seed=5"])
folder = pathlib.Path(sys.argv[1])
report.show(folder, {"accuracy": OverSeeds(0.5, 0.1, 300, (0.4, 0.5, 0.6))})
nan = float("nan")
report.show(folder, {"mse": OverSeeds(nan, nan, 20, (0.4, nan))})
"""


@pytest.mark.slow
def test_intervals_over_seeds_count_seeds_and_name_those_that_diverge(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", TABLES, str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert "seeds" in done.stdout
  assert "300" not in done.stdout
  assert "ValueError: mse is nan by --seed=6: what was " in done.stderr
