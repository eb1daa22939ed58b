"""Models of linen, nnx, equinox and haiku against the libraries' own loops.

Each network is a dense layer, batch normalisation, a ReLU, dropout and a head.
"""

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from metajax import variables
from metajax.evaluation import solve
from metajax.learners import maml, prototypical
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.adapters import (
  by_batch_statistics,
  from_equinox,
  from_haiku,
  from_linen,
  from_nnx,
)
from metajax.models.precision import compute_in
from metajax.training import (
  checkpoint,
  loss_of,
  meta_trainer,
  supervised_trainer,
)
from metajax.types import Batch, Episode, State
from tests.slow import slow_but

RNG, INIT_KEY = jax.random.key(0), jax.random.key(1)
FEATURES, UNITS, OUTPUTS, EXAMPLES = 3, 4, 2, 6
RATE, MOMENTUM = 0.3, 0.9
STEPS = 3


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(UNITS)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(x)
    x = nn.Dropout(RATE, deterministic=not train)(nn.relu(x))
    return nn.Dense(OUTPUTS)(x)


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.body = nnx.List([nnx.Linear(FEATURES, UNITS, rngs=rngs)])
    self.norm = nnx.BatchNorm(UNITS, momentum=MOMENTUM, rngs=rngs)
    self.dropout = nnx.Dropout(RATE, rngs=rngs)
    self.head = nnx.Linear(UNITS, OUTPUTS, rngs=rngs)
    self.scale = jnp.ones(UNITS)  # A bare array, which is no variable.

  def __call__(self, x):
    for layer in self.body:
      x = layer(x)
    return self.head(self.dropout(nnx.relu(self.norm(x)) * self.scale))


class Equinox(eqx.Module):
  body: eqx.nn.Linear
  norm: eqx.nn.BatchNorm
  dropout: eqx.nn.Dropout
  head: eqx.nn.Linear
  activation: Callable

  def __init__(self, key):
    body_key, head_key = jax.random.split(key)
    self.body = eqx.nn.Linear(FEATURES, UNITS, key=body_key)
    self.norm = eqx.nn.BatchNorm(
      UNITS, "batch", momentum=MOMENTUM, mode="batch"
    )
    self.dropout = eqx.nn.Dropout(RATE)
    self.head = eqx.nn.Linear(UNITS, OUTPUTS, key=head_key)
    self.activation = jax.nn.relu

  def __call__(self, x, state, key):
    x, state = self.norm(self.body(x), state)
    (key,) = jax.random.split(key, 1)  # Needs one, in evaluation too.
    return self.head(self.dropout(self.activation(x), key=key)), state


@hk.transform_with_state
def haiku(x, is_training):
  x = hk.Linear(UNITS)(x)
  x = hk.BatchNorm(True, True, MOMENTUM)(x, is_training)
  rate = RATE if is_training else 0.0
  x = hk.dropout(hk.next_rng_key(), rate, jax.nn.relu(x))
  return hk.Linear(OUTPUTS)(x)


# Each library's own pass in training: (params, inputs, rng) -> (predictions,
# weights, state), of parameters as the adapter has them.


def _linen_pass(params, x, rng):
  predictions, new = Linen().apply(
    {"params": params["params"], "batch_stats": params["batch_stats"].value},
    x,
    train=True,
    rngs={"dropout": rng},
    mutable=["batch_stats"],
  )
  return predictions, {**params, "batch_stats": State(new["batch_stats"])}


def _nnx_pass(params, x, rng):
  module = Nnx(nnx.Rngs(0))
  nnx.update(module, params["params"])
  nnx.update(module, params["state"].value)
  nnx.reseed(module, default=rng)
  module.train()
  predictions = module(x)
  state = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
  return predictions, {**params, "state": State(state)}


def _equinox_pass(params, x, rng):
  static, _ = eqx.nn.make_with_state(Equinox)(RNG)
  module = eqx.combine(params["params"], static)
  state = jax.tree.map(lambda x: x, params["state"].value)
  predictions, state = jax.vmap(
    module, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch"
  )(x, state, jax.random.split(rng, len(x)))
  return predictions, {**params, "state": State(state)}


def _haiku_pass(params, x, rng):
  predictions, state = haiku.apply(
    params["params"], params["state"].value, rng, x, is_training=True
  )
  return predictions, {**params, "state": State(state)}


class Library(NamedTuple):
  """An adapted model, and the library's own pass in training."""

  model: Any
  own_pass: Callable


LIBRARIES = {
  "linen": Library(from_linen(Linen()), _linen_pass),
  "nnx": Library(from_nnx(lambda rngs: Nnx(rngs)), _nnx_pass),
  "equinox": Library(from_equinox(lambda key: Equinox(key)), _equinox_pass),
  "haiku": Library(from_haiku(haiku), _haiku_pass),
}


FAST = ("linen",)


@pytest.fixture(params=slow_but(FAST, LIBRARIES))
def library(request) -> Library:
  return LIBRARIES[request.param]


@functools.cache
def _params(model):
  return jax.jit(model.init)(INIT_KEY, jnp.zeros((EXAMPLES, FEATURES)))


def _batch(seed, shape=()) -> Batch:
  draw = np.random.default_rng(seed).normal
  inputs = draw(size=(*shape, EXAMPLES, FEATURES)).astype(np.float32)
  targets = draw(size=(*shape, EXAMPLES, OUTPUTS)).astype(np.float32)
  return Batch(jnp.asarray(inputs), jnp.asarray(targets))


def _tasks(rng) -> Episode:
  keys = jax.random.split(rng, 4)
  inputs = [jax.random.normal(k, (EXAMPLES, FEATURES)) for k in keys[:2]]
  targets = [jax.random.normal(k, (EXAMPLES, OUTPUTS)) for k in keys[2:]]
  return Episode(*map(Batch, inputs, targets))


def _close(found, expected):
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def _state_of(params):
  return jax.tree.leaves(variables.states(params))


def _own_step(own_pass, optimizer):
  """A step of the library's own training loop."""

  @jax.jit
  def step(params, opt_state, batch, rng):
    def loss(weights):
      predictions, new = own_pass(
        variables.combine(weights, params), batch.inputs, rng
      )
      return mean_squared_error(predictions, batch.targets), new

    weights = variables.weights(params)
    grads, new = jax.grad(loss, has_aux=True)(weights)
    updates, opt_state = optimizer.update(grads, opt_state, weights)
    weights = optax.apply_updates(weights, updates)
    return variables.combine(weights, variables.states(new), params), opt_state

  return step


@pytest.mark.slow
def test_supervised_training_is_the_librarys_own(library):
  """Weights by AdamW, whose decay does not reach the state, and statistics."""
  # The bias before the normalisation has no gradient but rounding: large eps.
  optimizer, data = optax.adamw(0.1, weight_decay=0.1, eps=0.1), _batch(0)
  trainer = supervised_trainer(
    lambda rng: library.model.init(rng, data.inputs),
    loss_of(library.model, mean_squared_error, {"mse": mean_squared_error}),
    optimizer,
    data,
    batch_size=4,
    rng=RNG,
  )
  state = trainer.init(INIT_KEY)
  params = jax.tree.map(jnp.copy, state.meta_params)
  start = _state_of(params)
  train, _ = trainer.compile(state)
  state, metrics = train(state, STEPS)
  step = _own_step(library.own_pass, optimizer)
  opt_state = optimizer.init(variables.weights(params))
  for k in range(STEPS):
    key = jax.random.fold_in(RNG, k)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
    chosen = jax.vmap(lambda k: jax.random.randint(k, (), 0, EXAMPLES))(keys)
    batch = Batch(data.inputs[chosen], data.targets[chosen])
    params, opt_state = step(
      params, opt_state, batch, jax.random.fold_in(key, 4)
    )
  _close(state.meta_params, params)
  np.testing.assert_allclose(metrics["mse"], metrics["loss"])
  for before, after in zip(start, _state_of(params), strict=True):
    assert not np.array_equal(before, after)


@functools.cache
def _learner(model, num_steps=2):
  """MAML, whose inner optimizer decays weights."""
  inner = optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.1))
  return maml(model, mean_squared_error, inner, num_steps)


def test_an_inner_loop_is_the_librarys_own_training(library):
  params, support = _params(library.model), _batch(1)
  adapted = jax.jit(_learner(library.model, STEPS).adapt)(params, support, RNG)
  optimizer = optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.1))
  step = _own_step(library.own_pass, optimizer)
  opt_state = optimizer.init(variables.weights(params))
  for k in range(STEPS):
    params, opt_state = step(
      params, opt_state, support, jax.random.fold_in(RNG, k)
    )
  _close(adapted, params)


@pytest.mark.slow
def test_meta_gradient_is_that_of_weights_and_its_state_the_mean(library):
  """Finite differences in float64, with the dropout of one key."""
  learner = _learner(library.model, 1)
  with jax.enable_x64(True):
    params, episodes = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
      (_params(library.model), Episode(_batch(2, (2,)), _batch(3, (2,)))),
    )
    meta_grad = jax.jit(learner.meta_grad)
    grads, _ = meta_grad(params, episodes, RNG)
    draw = np.random.default_rng(0).normal
    direction = jax.tree.map(
      lambda x: draw(size=x.shape), variables.weights(params)
    )
    ends = [
      meta_grad(
        variables.map_weights(lambda p, d, e=e: p + e * d, params, direction),
        episodes,
        RNG,
      )[1]["loss"]
      for e in (1e-6, -1e-6)
    ]
    slope = sum(
      np.vdot(g, d)
      for g, d in zip(
        jax.tree.leaves(variables.weights(grads)),
        jax.tree.leaves(direction),
        strict=True,
      )
    )
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)

    # Each task's state goes through its support and its query.
    @jax.jit
    def final(episode, key):
      adapt_key, query_key = jax.random.split(key)
      adapted = learner.adapt(params, episode.support, adapt_key)
      _, new = library.own_pass(adapted, episode.query.inputs, query_key)
      return _state_of(new)

    finals = [
      final(jax.tree.map(lambda x, t=t: x[t], episodes), key)
      for t, key in enumerate(jax.random.split(RNG, 2))
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    for found, *tasks in zip(_state_of(grads), *finals, strict=True):
      np.testing.assert_allclose(found, np.mean(tasks, 0), rtol=1e-6)


def _labels(rng) -> Episode:
  episode = _tasks(rng)
  targets = jnp.arange(EXAMPLES) % OUTPUTS
  return jax.tree.map(
    lambda batch: batch._replace(targets=targets),
    episode,
    is_leaf=lambda x: isinstance(x, Batch),
  )


@pytest.mark.slow
def test_meta_training_writes_and_reads_state(library, tmp_path):
  """In two seeds at once; nothing but weights is decayed to zero."""
  name = "maml" if library is LIBRARIES["linen"] else "prototypical"
  if name == "maml":
    learner, tasks = _learner(library.model, num_steps=1), _tasks
  else:
    learner = prototypical(library.model, cross_entropy, num_outputs=OUTPUTS)
    tasks = _labels
  # Decay alone, which takes weights to 0.
  optimizer = optax.chain(optax.scale(0.0), optax.add_decayed_weights(-1.0))
  keys = jax.random.split(RNG, 2)
  trainer = meta_trainer(
    learner, optimizer, tasks, meta_batch=2, rng=keys, task_chunk=1
  )
  state = trainer.init(keys)
  start = _state_of(state.meta_params)
  start = [np.array(x) for x in start]
  state, metrics = trainer.compile(state)[0](state, 2)
  assert np.isfinite(metrics["loss"])
  for weight in jax.tree.leaves(variables.weights(state.meta_params)):
    np.testing.assert_array_equal(weight, 0)
  for before, after in zip(start, _state_of(state.meta_params), strict=True):
    assert before.shape == after.shape
    assert before.dtype == after.dtype
    assert (before != after).any()
  checkpoint.save(checkpoint.open_checkpoints(tmp_path), state, {})
  like = jax.tree.map(jnp.zeros_like, state)
  restored = checkpoint.restore(checkpoint.open_checkpoints(tmp_path), like)
  chex.assert_trees_all_equal(restored.state, state)


@pytest.mark.slow
def test_evaluation_is_by_running_statistics_or_by_the_batchs(library):
  """Running ones do not let queries see each other."""
  params = _params(library.model)
  train = jax.jit(library.model.train)
  _, params = train(params, _batch(4).inputs * 2 + 1, RNG)
  running = _learner(library.model)
  by_batch = _learner(by_batch_statistics(library.model))
  support, query = _batch(5), _batch(6)

  def predictions(learner, transductive):
    return jax.jit(
      lambda params: solve(
        learner,
        params,
        support,
        query.inputs,
        RNG,
        transductive=transductive,
      )
    )(params)

  together, alone = (predictions(running, t) for t in (True, False))
  np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
  seen, unseen = (predictions(by_batch, t) for t in (True, False))
  assert np.abs(seen - unseen).max() > 1e-2
  assert np.abs(seen - together).max() > 1e-2
  # By the batch's: shifting all inputs changes nothing, and dropout is off.
  half = compute_in(by_batch_statistics(library.model), jnp.float32)
  x = query.inputs
  apply = jax.jit(half.apply)
  first, second = (apply(params, y) for y in (x, x + 3))
  np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


def test_padding_is_refused_where_it_would_count(library):
  params, batch = _params(library.model), _batch(7)
  mask = jnp.arange(EXAMPLES) < 4
  with pytest.raises(ValueError, match="takes no `mask`"):
    library.model.train(params, batch.inputs, RNG, mask=mask)
  # In evaluation no example sees another.
  np.testing.assert_array_equal(
    library.model.apply(params, batch.inputs, mask=mask),
    library.model.apply(params, batch.inputs),
  )


@pytest.mark.slow
class AverageNorm(eqx.Module):
  """Sets its first state to a constant, as equinox's default does."""

  norm: eqx.nn.BatchNorm

  def __init__(self, key):
    del key
    self.norm = eqx.nn.BatchNorm(2, "batch", mode="ema")

  def __call__(self, x, state):
    return self.norm(x, state)


def test_constant_state_of_equinox_goes_through_a_mesh():
  """Equinox compares types, which name the mesh of arrays alone."""
  model = from_equinox(AverageNorm)
  inputs = jnp.arange(6.0).reshape(3, 2) ** 2
  params = model.init(INIT_KEY, inputs)
  mesh = jax.make_mesh((1,), ("tasks",))

  def train(params, inputs):
    return model.train(params, inputs, RNG)

  on_mesh = jax.shard_map(
    train, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
  )
  predictions, new = jax.jit(on_mesh)(params, inputs)
  deviations = inputs - inputs.mean(0)
  expected = deviations / jnp.sqrt(inputs.var(0) + 1e-5)
  np.testing.assert_allclose(predictions, expected, rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_close(new, train(params, inputs)[1], rtol=1e-6)


def test_importing_the_adapters_imports_no_other_library():
  code = (
    "import sys, metajax.models.adapters;"
    "assert not {'flax.nnx', 'equinox', 'haiku'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
