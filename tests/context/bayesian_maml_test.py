"""Bayesian MAML against loops in numpy, and against MAML with one network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from metajax.context.bayesian_maml import bayesian_maml, stein
from metajax.context.dense import mlp
from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.types import Batch, Episode


def test_directions_are_those_of_loops():
  draw = np.random.default_rng(0)
  points, gradients = draw.normal(size=(2, 4, 3))
  squares = ((points[:, None] - points) ** 2).sum(-1)
  h = np.median(squares) / np.log(5)
  expected = np.zeros((4, 3))
  for m in range(4):
    for j in range(4):
      k = np.exp(-squares[j, m] / h)
      away = -2 / h * (points[j] - points[m]) * k
      expected[m] += (k * gradients[j] + away) / 4
  with jax.enable_x64(True):
    found = stein(jnp.asarray(points), jnp.asarray(gradients))
  np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["particles", "width", "noise", "step_size"])
def test_bad_numbers_are_named(name):
  with pytest.raises(ValueError, match=f"{name}=0"):
    bayesian_maml(**{name: 0})


def _batch(key, n):
  x = jax.random.normal(key, (n, 1))
  return Batch(x, jnp.sin(x))


@pytest.mark.slow
def test_one_network_is_maml():
  keys = jax.random.split(jax.random.key(0), 3)
  support, query = _batch(keys[0], 6), _batch(keys[1], 4)
  noise, rate = 0.5, 0.02
  learner = bayesian_maml(
    width=8, particles=1, num_steps=3, step_size=rate, noise=noise
  )
  params = learner.init(keys[2], support.inputs)

  class Network:
    init = None
    apply = staticmethod(mlp)

  # -log p is the sum of squares / (2 noise^2) plus a constant.
  same = maml(
    Network,
    mean_squared_error,
    optax.sgd(rate * 6 / (2 * noise**2)),
    num_steps=3,
  )
  one = jax.tree.map(lambda x: x[0], params)
  ours = learner.adapt(params, support, keys[2])
  theirs = same.adapt(one, support, keys[2])
  expected = same.predict(theirs, query.inputs)
  found = learner.predict(ours, query.inputs)
  before = learner.predict(params, query.inputs).mean
  assert jnp.abs(found.mean - before).max() > 0.05
  np.testing.assert_allclose(found.mean, expected, atol=1e-5)


@pytest.mark.slow
def test_loss_is_that_of_the_mixture_and_padding_is_skipped():
  keys = jax.random.split(jax.random.key(1), 4)
  support, query = _batch(keys[0], 5), _batch(keys[1], 4)
  masked = support._replace(mask=jnp.arange(5) < 3)
  fewer = jax.tree.map(lambda x: x[:3], support)
  learner = bayesian_maml(
    width=5, particles=3, num_steps=2, step_size=0.01, noise=0.3
  )

  @jax.jit
  def both(rng):
    params = learner.init(rng, support.inputs)
    means = [
      learner.predict(learner.adapt(params, s, rng), query.inputs).means
      for s in (masked, fewer)
    ]
    tasks = jax.tree.map(lambda x: x[None], Episode(masked, query))
    return means, learner.meta_grad(params, tasks, rng)

  (means, others), (grads, metrics) = both(keys[2])
  np.testing.assert_allclose(means, others, atol=1e-6)
  densities = scipy.stats.norm.pdf(query.targets[..., None], means, 0.3)
  loss = -np.log(densities.mean(-1)).mean()
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  assert optax.tree.norm(grads) > 1e-3
