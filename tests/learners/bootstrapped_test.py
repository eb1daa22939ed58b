"""Bootstrapped meta-gradients against the same written out."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import bmg, maml
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
RATE, TASKS = 0.1, 2
DRAW = np.random.default_rng(0)
MODEL = MLP(2, (6,))


def _episodes(is_class):
  def batch(n):
    x = DRAW.normal(size=(TASKS, n, 4)).astype(np.float32)
    y = DRAW.integers(0, 2, (TASKS, n)) if is_class else x[..., :2] * 2
    return Batch(jnp.asarray(x), jnp.asarray(y))

  return Episode(batch(5), batch(7))


CLASSES, NUMBERS = _episodes(is_class=True), _episodes(is_class=False)
PARAMS = MODEL.init(RNG, jnp.zeros((1, 4)))


def _kl(predictions, goal):
  log_p, log_q = jax.nn.log_softmax(goal), jax.nn.log_softmax(predictions)
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def _half_square(predictions, goal):
  return 0.5 * jnp.mean((predictions - goal) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("episodes", "loss_fn", "match"),
  [
    (CLASSES, cross_entropy, _kl),
    (NUMBERS, mean_squared_error, _half_square),
  ],
)
def test_gradient_is_that_of_the_distance_to_a_constant_target(
  episodes, loss_fn, match
):
  """Plain SGD steps, task by task; 2 steps, and a target 3 steps further."""

  def descend(params, batch, steps):
    def loss(p):
      return loss_fn(MODEL.apply(p, batch.inputs), batch.targets)

    for _ in range(steps):
      grads = jax.grad(loss)(params)
      params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
    return params

  def distance(params, episode):
    phi = descend(params, episode.support, 2)
    target = descend(descend(phi, episode.support, 2), episode.query, 1)
    goal = MODEL.apply(target, episode.query.inputs)
    predictions = MODEL.apply(phi, episode.query.inputs)
    return match(predictions, jax.lax.stop_gradient(goal))

  def mean_distance(params):
    tasks = [jax.tree.map(lambda x, i=i: x[i], episodes) for i in range(TASKS)]
    return sum(distance(params, task) for task in tasks) / TASKS

  learner = bmg(MODEL, loss_fn, optax.sgd(RATE), 2, target_steps=3)
  found, _ = jax.jit(learner.meta_grad)(PARAMS, episodes, RNG)
  expected = jax.jit(jax.grad(mean_distance))(PARAMS)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
  assert optax.tree.norm(found) > 1e-3


@pytest.mark.slow
def test_target_at_the_present_point_gives_no_gradient():
  learner = bmg(MODEL, cross_entropy, optax.sgd(RATE), 2, target_steps=0)
  grads, _ = jax.jit(learner.meta_grad)(PARAMS, CLASSES, RNG)
  for leaf in jax.tree.leaves(grads):
    np.testing.assert_allclose(leaf, 0, atol=1e-7)


@pytest.mark.slow
def test_one_small_target_step_points_where_maml_does():
  """Matching half squares one small query step away is a step down the loss.

  With the predictions as parameters the target is `p - rate * dL/dp`, and the
  gradient of half the square to it is rate times the gradient of the loss.
  """

  class Table:
    def init(rng, inputs):
      del rng
      return jnp.zeros(inputs.shape[:1] + (2,))

    def apply(params, inputs):
      del inputs
      return params

  x = jnp.zeros((TASKS, 5, 1))
  y = jnp.asarray(DRAW.normal(size=(TASKS, 5, 2)), jnp.float32)
  episodes = Episode(Batch(x, 0 * y), Batch(x, y))
  params = jnp.asarray(DRAW.normal(size=(5, 2)), jnp.float32)
  build = functools.partial(
    bmg, Table, mean_squared_error, optax.sgd(RATE), 1, target_steps=1
  )
  sums = lambda p, t: 0.5 * jnp.sum((p - t) ** 2)  # noqa: E731
  found, _ = build(match=sums).meta_grad(params, episodes, RNG)
  second_order, _ = maml(
    Table, mean_squared_error, optax.sgd(RATE), 1
  ).meta_grad(params, episodes, RNG)
  np.testing.assert_allclose(found, RATE * second_order, rtol=1e-5)


def test_negative_steps_are_named():
  with pytest.raises(ValueError, match="target_steps=-1: must be 0 or more"):
    bmg(MODEL, cross_entropy, optax.sgd(RATE), 1, target_steps=-1)
