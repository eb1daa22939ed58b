"""Every learner with a network that has batch normalisation and dropout."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import variables
from metajax.learners import ENCODED, REGISTRY
from metajax.losses import accuracy, cross_entropy
from metajax.models.adapters import from_linen
from metajax.types import Batch, Episode, State
from tests.slow import slow_but

RNG = jax.random.key(0)
WAYS, TASKS, FEATURES = 2, 2, 3
OPTIONS = {"imaml": {"damping": 32.0}, "recurrent": {"units": 4}}


class Network(nn.Module):
  num_outputs: int | None

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(4)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
    return x if self.num_outputs is None else nn.Dense(self.num_outputs)(x)


def _batch(seed):
  draw = np.random.default_rng(seed).normal
  inputs = jnp.asarray(draw(3, 2, size=(TASKS, 4, FEATURES)), jnp.float32)
  return Batch(inputs, jnp.tile(jnp.arange(4) % WAYS, (TASKS, 1)))


EPISODES = Episode(_batch(0), _batch(1))


@functools.cache
def _build(name, decay=0.0):
  inner = optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1))
  options = dict(OPTIONS.get(name, {}))
  if name in ENCODED:
    options["num_outputs"] = WAYS
  return REGISTRY[name](
    Network(None if name in ENCODED else WAYS),
    cross_entropy,
    inner,
    1,
    metrics={"accuracy": accuracy},
    **options,
  )


FAST = ("maml", "prototypical")


def _statistics(tree) -> list:
  """The leaves `mean`, `var` of the network's batch normalisation."""
  return [
    leaf
    for path, leaf in jax.tree.leaves_with_path(variables.states(tree))
    if "BatchNorm_0" in jax.tree_util.keystr(path)
  ]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(FAST, REGISTRY))
def test_state_moves_by_what_is_seen_and_weights_by_their_gradient(name):
  learner = _build(name, decay=0.5)
  support = jax.tree.map(lambda x: x[0], EPISODES.support)
  params = jax.jit(learner.init)(RNG, support.inputs)
  grads, metrics = jax.jit(learner.meta_grad)(params, EPISODES, RNG)
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
  chex.assert_tree_all_finite((grads, metrics))
  assert any(np.any(x) for x in jax.tree.leaves(variables.weights(grads)))
  # Of hidden units that are shifted by the inputs' mean of 3.
  before, after = _statistics(params), _statistics(grads)
  assert len(before) == len(after) == 2
  for old, new in zip(before, after, strict=True):
    assert not np.allclose(old, new, atol=1e-3)
  # No gradient: the mean, which starts at 0, is a mean of hidden units.
  mean, var = after
  assert np.abs(mean).max() < 20
  assert (var > 0).all()

  @jax.jit
  def solve(params):
    task = learner.adapt(params, support, RNG)
    return learner.predict(task, EPISODES.query.inputs[0]), task

  predictions, _ = solve(params)
  assert predictions.shape == (4, WAYS)
  chex.assert_tree_all_finite(predictions)


# Those whose state is that of the very passes of support and query.
@pytest.mark.slow
@pytest.mark.parametrize(
  "name", slow_but(FAST, ["maml", "imaml", "reptile", "prototypical"])
)
def test_the_mean_of_the_first_layer_is_that_of_the_batches(name):
  """With rates of 0 nothing else moves, so numpy can follow."""
  build = REGISTRY[name]
  network = Network(None if name in ENCODED else WAYS)
  options = {"num_outputs": WAYS} if name in ENCODED else {}
  learner = build(network, cross_entropy, optax.sgd(0.0), 2, **options)
  params = jax.jit(learner.init)(RNG, EPISODES.support.inputs[0])
  grads, _ = jax.jit(learner.meta_grad)(params, EPISODES, RNG)
  layer = params["params"]["Dense_0"]
  support, query = (
    np.float64(b.inputs) @ np.float64(layer["kernel"]) for b in EPISODES
  )
  both = np.concatenate([support, query], axis=1)
  passes = {
    "prototypical": [support, query],
    "reptile": [both, both],
  }.get(name, [support, support, query])
  mean = np.zeros((TASKS, 4))
  for hidden in passes:
    mean = 0.5 * mean + 0.5 * hidden.mean(1)
  np.testing.assert_allclose(_statistics(grads)[0], mean.mean(0), rtol=1e-5)


class Frozen(nn.Module):
  """A network of flax whose normalisation is told once for all."""

  use_running_average: bool

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4)(x)
    x = nn.BatchNorm(use_running_average=self.use_running_average)(x)
    return nn.Dense(WAYS)(x)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_plain_module_keeps_or_moves_its_statistics_as_it_says(frozen):
  """SGD once moved the variance of a frozen one from 1 to 36.6."""
  module = Frozen(frozen)
  learner = REGISTRY["maml"](module, cross_entropy, optax.sgd(10.0), 3)
  support = jax.tree.map(lambda x: x[0], EPISODES.support)
  params = learner.init(RNG, support.inputs)
  task = jax.jit(learner.adapt)(params, support, RNG)
  grads, _ = jax.jit(learner.meta_grad)(params, EPISODES, RNG)
  for found in (task, grads):
    pairs = zip(_statistics(params), _statistics(found), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs) == frozen
  kernels = (x["params"]["Dense_0"]["kernel"] for x in (params, task))
  assert not np.array_equal(*kernels)
  chex.assert_tree_all_finite(grads)


def test_bare_variables_are_refused_before_they_are_trained():
  module = Frozen(True)
  inputs = EPISODES.support.inputs[0]
  raw = module.init(RNG, inputs)
  with pytest.raises(ValueError, match=r"\['batch_stats'\] are no weights"):
    from_linen(module).train(raw, inputs, RNG)
  wrapped = {**raw, "batch_stats": State(raw["batch_stats"])}
  chex.assert_trees_all_equal(
    from_linen(module).apply(wrapped, inputs), module.apply(raw, inputs)
  )
