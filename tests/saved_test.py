"""Trained meta-learners go through files and predict what they did."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import metajax
from metajax import recipes, saved
from metajax.learners import REGISTRY
from metajax.types import Batch
from tests.slow import slow_but

WAYS = 3
IMAGE = jax.ShapeDtypeStruct((4, 4, 1), jnp.dtype("float32"))
SUPPORT = Batch(
  jax.random.normal(jax.random.key(1), (WAYS, 4, 4, 1)), jnp.arange(WAYS)
)
MLP = {"name": "mlp", "hidden": [4]}
SGD = {"name": "sgd", "learning_rate": 0.1}
OPTIONS = {"maml_plus_plus": {"step_normalization": False}}


def _recipe(learner="maml", model=MLP, **changes):
  recipe = recipes.Recipe(
    learner,
    model,
    WAYS,
    "cross_entropy",
    SGD,
    2,
    1,
    options=OPTIONS.get(learner, {}),
  )
  return recipe._replace(**changes)


def _params(recipe, seed=0, model=None):
  learner = recipes.build(recipe, model=model)
  return learner.init(jax.random.key(seed), SUPPORT.inputs)


def _predictions(recipe, params, model=None):
  learner = recipes.build(recipe, model=model)
  # Compiled as in `load`: in bfloat16 the rounding is another else.
  task_params = jax.jit(learner.adapt)(params, SUPPORT, jax.random.key(0))
  return jax.jit(learner.predict)(task_params, SUPPORT.inputs)


@pytest.mark.parametrize(
  "recipe",
  [
    *slow_but(
      [_recipe(name) for name in ("maml", "maml_plus_plus", "ridge")],
      map(_recipe, REGISTRY),
    ),
    _recipe(model={"name": "conv4", "filters": 8, "num_blocks": 1}),
    _recipe(model=MLP | {"normalization": "running"}),  # It has state.
    _recipe(inner_optimizer={"name": "adam", "learning_rate": 0.01}),
    _recipe(dtype="bfloat16"),
  ],
  ids=lambda r: "-".join([r.learner, r.model["name"], r.dtype]),
)
def test_what_is_loaded_predicts_what_was_saved(recipe, tmp_path):
  params = _params(recipe)
  saved.save(tmp_path, recipe, params, IMAGE)
  loaded = metajax.load(tmp_path)
  assert loaded.recipe == recipe
  assert loaded.inputs == IMAGE
  chex.assert_trees_all_equal(loaded.meta_params, params)
  found = loaded.predict(loaded.adapt(SUPPORT), SUPPORT.inputs)
  np.testing.assert_allclose(
    found, _predictions(recipe, params), rtol=2e-5, atol=2e-5
  )


def test_one_of_several_trainings_and_other_inner_steps(tmp_path):
  recipe = _recipe()
  every = [_params(recipe, seed) for seed in range(2)]
  stack = jax.tree.map(lambda *x: jnp.stack(x), *every)
  saved.save(tmp_path, recipe, stack, IMAGE, seeds=2)
  loaded = metajax.load(tmp_path, seed=1, num_eval_steps=3)
  expected = _predictions(recipe._replace(num_eval_steps=3), every[1])
  found = loaded.predict(loaded.adapt(SUPPORT), SUPPORT.inputs)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  with pytest.raises(ValueError, match=r"seed=2.*trainings 0 to 1"):
    metajax.load(tmp_path, seed=2)


def test_steps_of_what_has_none_are_refused(tmp_path):
  recipe = _recipe("prototypical")
  saved.save(tmp_path, recipe, _params(recipe), IMAGE)
  with pytest.raises(ValueError, match="prototypical has no inner steps"):
    metajax.load(tmp_path, num_eval_steps=3)


def test_a_model_of_ones_own_is_given_again(tmp_path):
  class Own(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(WAYS)(x.reshape(len(x), -1))

  recipe = _recipe(model=None)
  params = _params(recipe, model=Own())
  saved.save(tmp_path, recipe, params, IMAGE)
  loaded = metajax.load(tmp_path, model=Own())
  chex.assert_trees_all_equal(loaded.meta_params, params)
  with pytest.raises(ValueError, match="give it as `model`"):
    metajax.load(tmp_path)


def test_what_cannot_be_loaded_says_why(tmp_path):
  with pytest.raises(ValueError, match=r"has no learner\.json"):
    metajax.load(tmp_path)
  recipe = _recipe()
  saved.save(tmp_path, recipe, _params(recipe), IMAGE)
  path = tmp_path / saved.META_PARAMS
  whole = path.read_bytes()
  path.write_bytes(whole[:-4])
  with pytest.raises(ValueError, match="damaged"):
    metajax.load(tmp_path)
  path.write_bytes(whole)
  about = (tmp_path / saved.LEARNER).read_text()
  number = json.dumps(json.loads(about) | {"model": 3})
  for other in ("[1, 2]", "{}", number, "\udcff"):
    (tmp_path / saved.LEARNER).write_text(other, errors="surrogateescape")
    with pytest.raises(ValueError, match=f"^{tmp_path}: .* damaged .* again"):
      metajax.load(tmp_path)
  (tmp_path / saved.LEARNER).write_text(about)
  with pytest.raises(ValueError, match=r"has no learner\.json"):
    metajax.load(tmp_path / saved.LEARNER)
  arrays = load_file(path)
  name = min(arrays)
  save_file({k: v for k, v in arrays.items() if k != name}, path)
  with pytest.raises(ValueError, match=f"{name} is None in"):
    metajax.load(tmp_path)
  save_file(arrays | {name: np.zeros(7, np.float32)}, path)
  with pytest.raises(ValueError, match=rf"{name} is \(7,\) in"):
    metajax.load(tmp_path)
  path.write_bytes(whole)
  (tmp_path / saved.LEARNER).write_text(about.replace('"maml"', '"other"'))
  with pytest.raises(ValueError, match=r"learner 'other'.*must be one of"):
    metajax.load(tmp_path)
