"""A training starts with the weights of an earlier run's network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import recipes, saved
from metajax.runs.warm_start import warm_started
from metajax.tasks import few_shot_episodes
from metajax.training import meta_trainer

NETWORK = {
  "name": "conv4",
  "filters": 4,
  "num_blocks": 1,
  "normalization": "running",
  "conv_lowering": "patches",
}
INPUTS = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)


def _recipe(learner, **changed):
  recipe = recipes.Recipe(
    learner,
    NETWORK,
    2,
    "cross_entropy",
    {"name": "sgd", "learning_rate": 0.1},
    1,
    1,
  )
  return recipe._replace(**changed)


def _params(learner, seed=0):
  return learner.init(jax.random.key(seed), jnp.zeros((2, 8, 8, 1)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The folder and the parameters of a prototypical network."""
  folder = tmp_path_factory.mktemp("trained")
  recipe = _recipe("prototypical")
  params = _params(recipes.build(recipe), seed=1)
  # Running statistics of its own, too.
  params = jax.tree.map(lambda x: x + 0.5, params)
  saved.save(folder, recipe, params, INPUTS)
  return str(folder), params


def _assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_an_embedding_is_taken_and_numbers_beside_it_are_new(trained):
  folder, params = trained
  learner = recipes.build(_recipe("cosine"))
  found = _params(warm_started(learner, NETWORK, folder))
  _assert_equal(found["embedding"], params)
  assert found["log_scale"] == _params(learner)["log_scale"]


def test_a_head_is_new_and_the_rest_is_taken(trained):
  folder, params = trained
  learner = recipes.build(_recipe("maml"))
  found = dict(_params(warm_started(learner, NETWORK, folder), 3)["params"])
  _assert_equal(found.pop("Dense_0"), _params(learner, 3)["params"]["Dense_0"])
  _assert_equal(found, params["params"])


def test_an_embedding_within_meta_parameters_is_found(trained, tmp_path):
  _, params = trained
  start = {**_params(recipes.build(_recipe("ridge"))), "embedding": params}
  saved.save(tmp_path, _recipe("ridge"), start, INPUTS)
  learner = recipes.build(_recipe("prototypical"))
  found = _params(warm_started(learner, NETWORK, str(tmp_path)))
  _assert_equal(found, params)


@pytest.mark.slow
def test_the_trainer_starts_there_with_several_seeds(trained):
  folder, params = trained
  learner = warm_started(recipes.build(_recipe("svm")), NETWORK, folder)
  trainer = meta_trainer(
    learner,
    optax.sgd(0.1),
    few_shot_episodes(jnp.zeros((3, 4, 8, 8, 1)), 2, 1, 1),
    meta_batch=1,
    rng=jax.random.split(jax.random.key(0)),
  )
  state = trainer.init(jax.random.split(jax.random.key(1)))
  for seed in range(2):
    found = jax.tree.map(lambda x, i=seed: x[i], state.meta_params)
    _assert_equal(found["embedding"], params)


def test_without_a_folder_nothing_changes():
  learner = recipes.build(_recipe("maml"))
  assert warm_started(learner, NETWORK, None) is learner


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"filters": 8}, "a network of filters=4, not 8: give the flags"),
    ({"name": "resnet12"}, "a network of name=conv4, not resnet12"),
    ({"normalization": "batch"}, "a network of normalization=running, not"),
  ],
)
def test_another_network_is_named(trained, changed, message):
  folder, _ = trained
  learner = recipes.build(_recipe("cosine"))
  with pytest.raises(ValueError, match=f"--init_from={folder}: {message}"):
    warm_started(learner, NETWORK | changed, folder)


def test_what_changes_no_array_may_differ(trained):
  learner = recipes.build(_recipe("cosine"))
  other = NETWORK | {"conv_lowering": "xla", "drop_rates": [0.1]}
  assert warm_started(learner, other, trained[0]) is not learner


def test_a_folder_without_a_run_is_named(tmp_path):
  learner = recipes.build(_recipe("cosine"))
  with pytest.raises(ValueError, match=f"^--init_from={tmp_path}: has no "):
    warm_started(learner, NETWORK, str(tmp_path))
