"""Meta-SGD: MAML at rates of 1, and the rates' gradient in closed form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import maml, meta_sgd
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
MODEL = MLP(1, (6,))
EPISODES = jax.jit(jax.vmap(sinusoid(4, 6)))(jax.random.split(RNG, 3))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.05), optax.rmsprop(0.01)])
def test_rates_of_one_are_maml(optimizer):
  learners = [
    build(MODEL, mean_squared_error, optimizer, 2) for build in (maml, meta_sgd)
  ]
  params = jax.jit(learners[0].init)(RNG, EPISODES.support.inputs[0])
  meta_params = jax.jit(learners[1].init)(RNG, EPISODES.support.inputs[0])
  chex.assert_trees_all_equal(meta_params["params"], params)
  expected, metrics = jax.jit(learners[0].meta_grad)(params, EPISODES, RNG)
  found, other = jax.jit(learners[1].meta_grad)(meta_params, EPISODES, RNG)
  chex.assert_trees_all_close(found["params"], expected, rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_close(other, metrics, rtol=1e-5)


def test_one_step_and_its_gradient_in_closed_form():
  """A line through the origin: everything is a number."""

  class Slope:
    init = staticmethod(lambda rng, inputs: jnp.float32(0.7))
    apply = staticmethod(lambda slope, inputs: slope * inputs)

  x, y, step = 2.0, 3.0, 0.1
  xq, yq = 1.5, 1.0
  slope, rate = 0.7, -0.4  # Of any sign.
  slow = 2 * x * (slope * x - y)
  phi = slope - rate * step * slow
  # L = (phi xq - yq)^2
  outer = 2 * xq * (phi * xq - yq)
  learner = meta_sgd(Slope, mean_squared_error, optax.sgd(step), 1)

  def one(value):
    return jnp.full((1, 1, 1), value, jnp.float32)

  episodes = Episode(Batch(one(x), one(y)), Batch(one(xq), one(yq)))
  params = {"params": jnp.float32(slope), "rates": jnp.float32(rate)}
  support = jax.tree.map(lambda a: a[0], episodes.support)
  np.testing.assert_allclose(
    learner.adapt(params, support, RNG), phi, rtol=1e-6
  )
  grads, metrics = learner.meta_grad(params, episodes, RNG)
  np.testing.assert_allclose(metrics["loss"], (phi * xq - yq) ** 2, rtol=1e-5)
  np.testing.assert_allclose(grads["rates"], -outer * step * slow, rtol=1e-5)
  curvature = 1 - rate * step * 2 * x**2
  np.testing.assert_allclose(grads["params"], outer * curvature, rtol=1e-5)


def test_steps_in_evaluation_differ_from_those_in_training():
  build = functools.partial(
    meta_sgd, MODEL, mean_squared_error, optax.sgd(0.05)
  )
  params = jax.jit(build(1).init)(RNG, EPISODES.support.inputs[0])
  support = jax.tree.map(lambda x: x[0], EPISODES.support)
  chex.assert_trees_all_equal(
    jax.jit(build(1, num_eval_steps=3).adapt)(params, support, RNG),
    jax.jit(build(3).adapt)(params, support, RNG),
  )


def test_negative_steps_are_refused():
  with pytest.raises(ValueError, match="num_steps=-1: must be 0 or more"):
    meta_sgd(MODEL, mean_squared_error, optax.sgd(0.05), -1)
