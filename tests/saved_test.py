"""Trained meta-learners go through files and predict what they did."""

import json
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import metajax
from metajax import context, recipes, saved
from metajax.learners import REGISTRY
from metajax.predictive import log_likelihood
from metajax.tasks import few_shot_episodes
from metajax.tasks.standardized import Channels, standardized
from metajax.types import Batch, State
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


# Small networks of their own, by kind and name; learners without a model.
EDGES = [-1.5, -0.5, 0.1, 0.6, 2.0]
LAYERS = {"width": 8, "hidden": 8, "heads": 2}
IN_CONTEXT = {
  **{name: {"width": 8} for name in ("cnp", "canp", "anp", "alpaca")},
  "convcnp": {"width": 4, "layers": 1, "density": 8},
  **{name: LAYERS | {"layers": 1} for name in ("tnp_d", "tnp_a", "tnp_nd")},
  "prior_fitted": LAYERS | {"layers": 1, "edges": EDGES},
}
READING = {
  **{name: {"units": 8} for name in ("lstm", "gru", "delta", "mann")},
  "ttt": {"width": 8, "heads": 2},
  "snail": {"channels": 4, "attention": [[4, 2], [4, 2]]},
  "transformer": LAYERS,
  "interleaved": LAYERS,
}
POINT = jax.ShapeDtypeStruct((1,), jnp.dtype("float32"))


def test_every_learner_in_context_is_saved_below():
  assert set(IN_CONTEXT) == set(context.LEARNERS)
  assert set(READING) == set(context.READERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["tnp_d"], IN_CONTEXT))
def test_distributions_of_what_is_loaded_are_those_of_what_was_saved(
  name, tmp_path
):
  recipe = recipes.Recipe(
    name, None, 1, "log_likelihood", options=IN_CONTEXT[name], kind="context"
  )
  x = jnp.linspace(-1, 1, 6)[:, None]
  support = Batch(x[:4], jnp.sin(x[:4]))
  learner = recipes.build(recipe)
  params = learner.init(jax.random.key(0), x)
  saved.save(tmp_path, recipe, params, POINT)
  loaded = metajax.load(tmp_path)
  assert loaded.recipe == recipe
  task_params = jax.jit(learner.adapt)(params, support, jax.random.key(0))
  expected = jax.jit(learner.predict)(task_params, x)
  found = loaded.predict(loaded.adapt(support), x)
  for score in (context.log_density, context.of_marginals(log_likelihood)):
    np.testing.assert_allclose(
      score(found, jnp.cos(x)), score(expected, jnp.cos(x)), rtol=1e-6
    )
  with pytest.raises(ValueError, match=f"{name} has no inner steps"):
    metajax.load(tmp_path, num_eval_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["snail"], READING))
def test_readers_that_are_loaded_predict_what_was_saved(name, tmp_path):
  recipe = recipes.Recipe(
    name,
    MLP,
    WAYS,
    "cross_entropy",
    options=READING[name] | {"of_support": False, "length": WAYS + 1},
    kind="reader",
  )
  params = _params(recipe)
  saved.save(tmp_path, recipe, params, IMAGE)
  loaded = metajax.load(tmp_path)
  assert loaded.recipe == recipe
  found = loaded.predict(loaded.adapt(SUPPORT), SUPPORT.inputs)
  np.testing.assert_allclose(
    found, _predictions(recipe, params), rtol=2e-5, atol=2e-5
  )
  with pytest.raises(ValueError, match="class 3 given, must be 0 to 2"):
    loaded.adapt(SUPPORT._replace(targets=jnp.arange(1, 4)))


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


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_random_keys_are_loaded_as_those_of_their_kind(kind, tmp_path):
  """They became the default's, of which the data are fewer or others."""
  model = SimpleNamespace(
    init=lambda rng, x: {
      "w": jnp.ones(3),
      "noise": State(jax.random.key(5, impl=kind)),
    },
    apply=lambda params, x: (
      jax.random.normal(params["noise"].value, (len(x), 3)) * params["w"]
    ),
  )
  recipe = _recipe(model=None)
  params = _params(recipe, model=model)
  saved.save(tmp_path, recipe, params, IMAGE)
  loaded = metajax.load(tmp_path, model=model)
  found = loaded.learner.predict(loaded.meta_params, SUPPORT.inputs)
  np.testing.assert_array_equal(found, model.apply(params, SUPPORT.inputs))


@pytest.mark.parametrize(
  "kind, learner", [("context", "alpaca"), ("table", "tabular_classifier")]
)
def test_a_dtype_that_would_have_no_effect_is_refused(kind, learner):
  recipe = _recipe(learner, None, kind=kind, dtype="bfloat16", options={})
  with pytest.raises(ValueError, match="^dtype='bfloat16': .* leave it out"):
    recipes.build(recipe)


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


PHOTOS = np.random.default_rng(0).integers(256, size=(3, 6, 6, 3), dtype="u1")
CHANNELS = Channels((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


def _loaded(tmp_path, shape=(6, 6, 3), learner="maml", **about):
  """Loads a network of no training, for examples of a shape."""
  recipe, inputs = (
    _recipe(learner),
    jax.ShapeDtypeStruct(shape, jnp.dtype("float32")),
  )
  learner = recipes.build(recipe)
  params = learner.init(jax.random.key(0), jnp.zeros((1, *shape)))
  saved.save(tmp_path, recipe, params, inputs, **about)
  return metajax.load(tmp_path)


@pytest.mark.parametrize("channels", [None, CHANNELS])
def test_pixels_are_those_of_the_training(channels, tmp_path):
  tasks = few_shot_episodes(PHOTOS[:, None].repeat(2, 1), 3, 1, 1)
  if channels:
    tasks = standardized(tasks, channels)
  support = tasks(jax.random.key(0)).support
  loaded = _loaded(tmp_path, channels=channels)
  pixels = loaded.pixels(PHOTOS)
  # The classes of a task are drawn in any order.
  same = np.abs(support.inputs[:, None] - pixels).max((2, 3, 4)) < 1e-5
  np.testing.assert_array_equal(np.sort(same.argmax(1)), [0, 1, 2])
  assert same.sum() == 3


def test_pixels_of_a_learner_of_bytes_are_not_all_zero(tmp_path):
  loaded = _loaded(tmp_path)
  loaded = loaded._replace(inputs=jax.ShapeDtypeStruct((6, 6, 3), jnp.uint8))
  with pytest.raises(
    ValueError, match="^the learner takes uint8, .* would be 0"
  ):
    loaded.pixels(PHOTOS)


def test_drawings_are_inverted_coloured_images_grey_and_all_resized(tmp_path):
  loaded = _loaded(tmp_path, (3, 3, 1), inverted=True)
  assert loaded.pixels(PHOTOS).shape == (3, 3, 3, 1)
  grey = np.full((1, 3, 3, 3), (10, 20, 30), np.uint8)
  luminance = round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)
  np.testing.assert_allclose(
    loaded.pixels(grey), np.full((1, 3, 3, 1), 1 - luminance / 255), rtol=1e-6
  )
  coloured = _loaded(tmp_path).pixels(np.full((1, 6, 6, 1), 51, np.uint8))
  np.testing.assert_allclose(coloured, np.full((1, 6, 6, 3), 0.2), rtol=1e-6)


def test_what_is_no_input_of_the_training_is_named(tmp_path):
  loaded = _loaded(tmp_path)
  support = Batch(loaded.pixels(PHOTOS), jnp.arange(3))
  task_params = loaded.adapt(support)
  with pytest.raises(ValueError, match="^inputs: uint8 given, .*loaded.pixels"):
    loaded.adapt(support._replace(inputs=PHOTOS))
  with pytest.raises(ValueError, match="^inputs: uint8 given, .*loaded.pixels"):
    loaded.predict(task_params, PHOTOS)
  other = jnp.zeros((3, 5, 5, 3))
  message = r"^inputs: examples of shape \(5, 5, 3\), .* trained on \(6, 6, 3\)"
  with pytest.raises(ValueError, match=message):
    loaded.adapt(support._replace(inputs=other))
  with pytest.raises(ValueError, match=message):
    loaded.predict(task_params, other)
  for images in (PHOTOS / 255, PHOTOS[0], PHOTOS[..., :2]):
    with pytest.raises(ValueError, match="^images: .*must be uint8"):
      loaded.pixels(images)
  points = _loaded(tmp_path, (2,))
  with pytest.raises(ValueError, match=r"shape \(2,\), no images"):
    points.pixels(PHOTOS)


NO_CLASSES = [
  ({"targets": ["ant", "bee", "cat"]}, "targets: <U3 given, .*np.unique"),
  ({"targets": np.array(["ant", "bee"])}, "targets: <U3 given, .*integers"),
  ({"targets": np.arange(3.0)}, "targets: float64 given, .*integers"),
  ({"targets": np.eye(3)}, "targets: float64 given, .*integers"),
  ({"targets": np.eye(3, dtype=int)}, r"\(3, 3\)"),
  ({"targets": np.arange(3)[:, None]}, r"\(3, 1\)"),
  ({"targets": np.arange(2)}, r"\(2,\)"),
  (
    {"inputs": np.zeros((0, 6, 6, 3), "f4"), "targets": np.arange(0)},
    "no example given",
  ),
]


@pytest.mark.parametrize("learner", ["maml", "prototypical"])
def test_labels_that_are_no_classes_are_named(learner, tmp_path):
  loaded = _loaded(tmp_path, learner=learner)
  support = Batch(loaded.pixels(PHOTOS), np.arange(3))
  assert loaded.adapt(support._replace(targets=[0, 1, 2]))
  for changes, message in NO_CLASSES:
    with pytest.raises(ValueError, match=message):
      loaded.adapt(support._replace(**changes))


@pytest.mark.parametrize("learner", ["maml", "prototypical"])
def test_labels_of_masked_examples_are_checked_but_for_padding(
  learner, tmp_path
):
  """Beside a mask no label was checked, and the predictions were NaN."""
  loaded = _loaded(tmp_path, learner=learner)
  inputs, mask = loaded.pixels(PHOTOS), np.array([True, True, False])
  expected = loaded.adapt(Batch(inputs, np.array([0, 1, 9]), mask))
  found = loaded.adapt(Batch(inputs, [0, 1, 9], mask.tolist()))
  chex.assert_trees_all_equal(found, expected)
  with pytest.raises(ValueError, match="class 9 given, must be 0 to 2"):
    loaded.adapt(Batch(inputs, np.array([0, 9, 1]), mask))


def test_what_is_no_batch_is_named(tmp_path):
  loaded = _loaded(tmp_path)
  with pytest.raises(ValueError, match="^support: tuple given, .*Batch"):
    loaded.adapt((loaded.pixels(PHOTOS), np.arange(3)))
