"""Pictures of inputs of any size, and tables of any estimates."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

from metajax.evaluation import OverSeeds
from metajax.learners import maml
from metajax.losses import cross_entropy
from metajax.models.mlp import MLP
from metajax.runs import plots, training
from metajax.tasks.few_shot import few_shot_episodes


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (4, 6, 1), (4, 4, 3)])
def test_images_of_any_size_and_colour_are_drawn(shape, tmp_path):
  images = jnp.ones((4, 3, *shape), jnp.uint8)
  tasks = few_shot_episodes(images, 2, 1, 1)
  learner = maml(MLP(2, (2,)), cross_entropy, optax.sgd(0.1), 1)
  key = jax.random.key(0)
  params = learner.init(key, tasks(key).support.inputs)
  path = tmp_path / "episodes.png"
  plots.image_episodes(path, learner, params, tasks, key, 2, columns=2)
  assert path.stat().st_size > 0


def test_an_interval_over_seeds_counts_seeds(tmp_path, capsys):
  of_seeds = OverSeeds(0.5, 0.1, 300, (0.4, 0.5, 0.6))
  training.show(tmp_path, {"accuracy": of_seeds})
  table = capsys.readouterr().out
  assert "seeds" in table
  assert "300" not in table


def test_a_result_that_is_not_finite_is_an_error_that_names_the_seed(tmp_path):
  broken = OverSeeds(math.nan, math.nan, 20, (0.4, math.nan))
  training.FLAGS(["test", "--seed=5"])
  with pytest.raises(ValueError, match=r"mse is nan by --seed=6: .*diverges"):
    training.show(tmp_path, {"mse": broken})
