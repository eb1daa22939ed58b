"""Which parameters adapt: ANIL, BOIL, and masks of one's own."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import all_but_last_layer, last_layer, maml
from metajax.learners.partition import merge, normalization, split
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.models.transformer import Transformer
from metajax.tasks import sinusoid

MODEL = MLP(1, (5, 4))
RNG = jax.random.key(0)
EPISODES = jax.jit(jax.vmap(sinusoid(4, 6)))(jax.random.split(RNG, 3))
# The output's bias and the first layer's weights.
OWN = {
  "params": {
    "Dense_0": {"bias": False, "kernel": True},
    "Dense_1": {"bias": False, "kernel": False},
    "Dense_2": {"bias": True, "kernel": False},
  }
}


@functools.cache
def _params():
  return jax.jit(MODEL.init)(RNG, EPISODES.support.inputs[0])


def _learner(mask, first_order=False):
  return maml(
    MODEL, mean_squared_error, optax.sgd(0.05), 2, first_order, mask=mask
  )


def _moved(mask):
  """`{layer/array: whether it differs}` after adaptation."""
  support = jax.tree.map(lambda x: x[0], EPISODES.support)
  adapted = jax.jit(_learner(mask).adapt)(_params(), support, RNG)
  before, after = _params()["params"], adapted["params"]
  return {
    f"{layer}/{name}": not np.array_equal(before[layer][name], x)
    for layer, arrays in after.items()
    for name, x in arrays.items()
  }


@pytest.mark.parametrize(
  "mask, expected",
  [
    (None, {"Dense_0", "Dense_1", "Dense_2"}),
    (last_layer, {"Dense_2"}),
    (all_but_last_layer, {"Dense_0", "Dense_1"}),
  ],
)
def test_layers_of_the_mask_adapt_and_the_others_stay(mask, expected):
  for name, moved in _moved(mask).items():
    assert moved == (name.split("/")[0] in expected), name


def test_arrays_of_a_mask_of_ones_own_adapt():
  moved = {name for name, moved in _moved(OWN).items() if moved}
  assert moved == {"Dense_0/kernel", "Dense_2/bias"}


@pytest.mark.slow
@pytest.mark.parametrize("first_order", [False, True])
def test_mask_of_everything_is_maml(first_order):
  everything = functools.partial(jax.tree.map, lambda _: True)
  gradients = [
    jax.jit(_learner(mask, first_order).meta_grad)(_params(), EPISODES, RNG)
    for mask in (None, everything)
  ]
  chex.assert_trees_all_equal(*gradients)


def test_first_order_gradient_is_the_query_gradient_at_the_adapted_ones():
  """Of those that do not adapt, too."""
  learner = _learner(last_layer, first_order=True)

  @jax.jit
  def expected(params, support, query):
    adapted = learner.adapt(params, support, RNG)
    return jax.grad(
      lambda p: mean_squared_error(MODEL.apply(p, query.inputs), query.targets)
    )(adapted)

  alone = [
    expected(_params(), *jax.tree.map(lambda x: x[i], EPISODES))  # noqa: B023
    for i in range(3)
  ]
  mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *alone)
  found, _ = jax.jit(learner.meta_grad)(_params(), EPISODES, RNG)
  chex.assert_trees_all_close(found, mean, rtol=1e-5, atol=1e-6)


def test_last_layer_is_by_number_not_by_letter():
  arrays = {f"Dense_{i}": {"kernel": jnp.ones(1)} for i in (2, 9, 10)}
  params = {"params": arrays | {"Other_11": {"kernel": jnp.ones(1)}}}
  mask = last_layer(params)["params"]
  assert [name for name, m in mask.items() if m["kernel"]] == ["Dense_10"]


def test_last_layer_of_a_transformer_is_its_head():
  model = Transformer(vocabulary=7, width=4, blocks=2, heads=2)
  tokens = jnp.zeros((1, 3), jnp.int32)
  params = jax.eval_shape(model.init, RNG, tokens)
  mask = last_layer(params)["params"]
  assert mask.pop("Dense_0") == {"bias": True, "kernel": True}
  assert params["params"]["Dense_0"]["kernel"].shape == (4, 7)
  assert "Dense_3" in mask["blocks"]
  assert not any(jax.tree.leaves(mask))


def test_last_layer_of_models_side_by_side_is_not_guessed():
  arrays = {"Dense_0": {"kernel": jnp.ones(1)}}
  with pytest.raises(ValueError, match="several inner models"):
    last_layer({"params": {"encoder": arrays, "head": arrays}})


def test_models_without_such_layers_need_a_mask_of_their_own():
  with pytest.raises(ValueError, match="no layer Dense_0, .* mask of your own"):
    last_layer({"slope": jnp.ones(1)})


def test_mask_of_nothing_is_refused():
  with pytest.raises(ValueError, match="mask: is False everywhere"):
    split(_params(), functools.partial(jax.tree.map, lambda _: False))


def test_merge_undoes_split():
  fast, slow = split(_params(), OWN)
  assert len(jax.tree.leaves(fast)) == 2
  assert len(jax.tree.leaves(slow)) == 4
  chex.assert_trees_all_equal(merge(fast, slow), _params())


@pytest.mark.parametrize(
  "name",
  [
    "BatchNorm_0",
    "bn1",
    "RMSNorm",
    "InstanceNorm_2",
    "norm",
    "layer_norm",
    "ln",
  ],
)
def test_normalizations_are_known_by_many_names(name):
  params = {"params": {name: {"scale": 1.0}, "Dense_0": {"kernel": 1.0}}}
  found = normalization(params)
  assert found == {
    "params": {name: {"scale": True}, "Dense_0": {"kernel": False}}
  }


def test_a_model_without_normalization_is_refused():
  with pytest.raises(ValueError, match="^mask: no layer is called like a norm"):
    normalization({"params": {"Dense_0": {"kernel": 1.0}}})


def test_a_named_head_beside_dense_layers_is_not_passed_over():
  kernel = {"kernel": jnp.ones((2, 2))}
  params = {"params": {"Dense_0": kernel, "head": kernel}}
  with pytest.raises(ValueError, match="there is a layer head, and either"):
    last_layer(params)


@pytest.mark.parametrize(
  "mask, named",
  [
    (["head"], "'head' given, must be True or False"),
    (
      lambda params: jax.tree.map(jnp.ones_like, params),
      "an array given, must be",
    ),
  ],
)
def test_masks_of_something_else_are_refused(mask, named):
  with pytest.raises(ValueError, match=f"^mask: {named}"):
    jax.eval_shape(
      _learner(mask).adapt,
      _params(),
      jax.tree.map(lambda x: x[0], EPISODES.support),
      RNG,
    )
