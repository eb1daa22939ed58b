"""Data distillation as a meta-learner, on three blobs in the plane."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.distillation import (
  SyntheticSet,
  distribution_matching,
  synthetic_set,
  unrolled,
)
from metajax.learners import distill_data
from metajax.tasks import class_batches
from metajax.types import Batch

CLASSES, HIDDEN, TASKS = 3, 16, 2
RNG = jax.random.key(0)
DRAW = np.random.default_rng(0)
CENTRES = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
BLOBS = CENTRES[:, None] + 0.5 * DRAW.normal(size=(CLASSES, 80, 2))
BLOBS = BLOBS.astype(np.float32)
FAMILY = class_batches(jnp.asarray(BLOBS[:, :40]), 10)
TEST = BLOBS[:, 40:].reshape(-1, 2), np.repeat(np.arange(CLASSES), 40)
NOISE = synthetic_set(DRAW.normal(size=(6, 2)).astype(np.float32), CLASSES)


class Network:
  """A layer and a linear head, both random."""

  def init(rng, inputs):
    width = inputs.shape[-1]
    draw = jax.random.normal(rng, (width + CLASSES, HIDDEN))
    return {"w": draw[:width], "v": draw[width:].T / 4}

  def apply(params, inputs):
    return jnp.tanh(inputs @ params["w"]) @ params["v"]


class Embedding:
  """The layer."""

  init = Network.init

  def apply(params, inputs):
    return jnp.tanh(inputs @ params["w"])


UNROLLED = unrolled(Network, 1)


@functools.cache
def _episodes():
  """The tasks of 60 meta-steps, drawn once, as that is slow to compile."""
  keys = jax.random.split(RNG, (60, TASKS))
  return jax.jit(jax.vmap(jax.vmap(FAMILY)))(keys)


@functools.cache
def _accuracy():
  """Of fresh networks, 5 steps on the set, on blobs that nobody saw."""
  learner = distill_data(Network, UNROLLED, NOISE, 5)
  nothing = Batch(jnp.zeros((0, 2)), jnp.zeros(0, jnp.int32))

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  def accuracy(synthetic, key):
    params = learner.adapt(synthetic, nothing, key)
    predictions = learner.predict(params, TEST[0]).argmax(-1)
    return jnp.mean(predictions == TEST[1])

  return lambda synthetic: float(
    accuracy(synthetic, jax.random.split(RNG, 50)).mean()
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "objective",
  [unrolled(Network, 3, memory="mixed"), distribution_matching(Embedding)],
  ids=["unrolled", "distribution"],
)
def test_fresh_networks_learn_better_from_the_set_that_was_learned(objective):
  learner = distill_data(Network, objective, NOISE, 5)
  optimizer = optax.adam(0.1)

  def step(carry, step):
    (synthetic, state), (episodes, key) = carry, step
    grads, metrics = learner.meta_grad(synthetic, episodes, key)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(synthetic, updates), state), metrics["loss"]

  start = learner.init(RNG, TEST[0])
  (synthetic, _), losses = jax.jit(functools.partial(jax.lax.scan, step))(
    (start, optimizer.init(start)), (_episodes(), jax.random.split(RNG, 60))
  )
  assert losses[-10:].mean() < 0.7 * losses[:10].mean()
  before, after = _accuracy()(start), _accuracy()(synthetic)
  assert before < 0.6
  assert after > before + 0.2


def test_adaptation_is_training_on_the_set_from_a_random_start():
  """By hand, in numpy; whatever the support is."""
  learner = distill_data(Network, UNROLLED, NOISE, 4)
  adapt = jax.jit(learner.adapt)
  soft = NOISE._replace(
    targets=jnp.asarray(DRAW.dirichlet(np.ones(CLASSES), 6), jnp.float32),
    log_step_size=jnp.log(0.4),
  )
  support = Batch(jnp.ones((2, 2)), jnp.array([0, 1]))
  unknown = Batch(support.inputs * jnp.nan, support.targets + 1)
  found = adapt(soft, support, RNG)
  for a, b in zip(
    *map(jax.tree.leaves, (found, adapt(soft, unknown, RNG))), strict=True
  ):
    np.testing.assert_array_equal(a, b)

  inputs, targets = (np.asarray(x, np.float64) for x in soft[:2])
  start = Network.init(RNG, inputs)
  w, v = (np.asarray(start[name], np.float64) for name in "wv")
  for _ in range(4):
    hidden = np.tanh(inputs @ w)
    p = np.exp(hidden @ v)
    error = (p / p.sum(1, keepdims=True) - targets) / 6
    back = (error @ v.T) * (1 - hidden**2)
    w, v = w - 0.4 * inputs.T @ back, v - 0.4 * hidden.T @ error
  np.testing.assert_allclose(found["w"], w, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found["v"], v, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    learner.predict(found, TEST[0]), np.tanh(TEST[0] @ w) @ v, atol=1e-5
  )
  other = adapt(soft, support, jax.random.key(1))
  assert np.abs(other["w"] - found["w"]).max() > 0.1


def test_meta_parameters_are_the_set_given():
  learner = distill_data(Network, UNROLLED, NOISE, 4)
  found = learner.init(RNG, jnp.zeros((7, 2)))
  assert isinstance(found, SyntheticSet)
  for a, b in zip(found, NOISE, strict=True):
    np.testing.assert_array_equal(a, b)


@functools.cache
def _of_tasks():
  """Two tasks, and the losses and gradients in all fields of each by itself."""
  episodes = jax.tree.map(lambda x: x[0], _episodes())
  return episodes, jax.jit(
    jax.vmap(jax.value_and_grad(UNROLLED), (None, 0, 0))
  )(NOISE, episodes.query, jax.random.split(RNG, TASKS))


@pytest.mark.slow
@pytest.mark.parametrize("learned", [(), ("targets", "log_step_size")])
def test_gradient_is_the_tasks_mean_and_zero_where_nothing_is_learned(learned):
  """Without a choice, the inputs are learned."""
  choice = {"learned": learned} if learned else {}
  learner = distill_data(Network, UNROLLED, NOISE, 4, **choice)
  episodes, (losses, expected) = _of_tasks()
  grads, metrics = jax.jit(learner.meta_grad)(NOISE, episodes, RNG)
  np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
  assert abs(losses[0] - losses[1]) > 1e-3
  for name in SyntheticSet._fields:
    found, mean = (getattr(g, name) for g in (grads, expected))
    mean = mean.mean(0)
    assert np.abs(mean).max() > 1e-3
    if name in (learned or ("inputs",)):
      np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)
    else:
      np.testing.assert_array_equal(found, np.zeros_like(mean))


@pytest.mark.parametrize("learned", [(), ("labels",), ("inputs", "step_size")])
def test_unknown_field_is_named(learned):
  with pytest.raises(ValueError, match=r"^learned=.*'log_step_size'"):
    distill_data(Network, UNROLLED, NOISE, 4, learned=learned)
