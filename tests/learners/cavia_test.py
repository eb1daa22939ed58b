"""CAVIA: what adapts is the context, and by hand it is a small formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import cavia
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.types import Batch

RNG = jax.random.key(0)
SUPPORT = jax.jit(sinusoid(4, 6))(RNG).support


class Line:
  """`[x, c] . weights`, with one number of context."""

  init = staticmethod(lambda rng, inputs: jnp.ones((inputs.shape[1], 1)))
  apply = staticmethod(lambda weights, inputs: inputs @ weights)


def test_one_step_by_hand():
  learner = cavia(Line, mean_squared_error, optax.sgd(0.5), 1, num_context=1)
  weights = np.array([[2.0], [-3.0]], np.float32)
  x, y = np.array([[1.0], [4.0]], np.float32), np.array([[1.0], [0.0]])
  # The context begins at 0: predictions are 2 x.
  slope = np.mean(2 * (2 * x - y) * -3.0)
  adapted = learner.adapt(weights, Batch(x, y), RNG)
  np.testing.assert_allclose(adapted["context"], [-0.5 * slope], rtol=1e-6)
  np.testing.assert_allclose(
    learner.predict(adapted, x), 2 * x - 3 * -0.5 * slope, rtol=1e-6
  )


def test_network_stays_and_only_the_context_adapts():
  learner = cavia(
    MLP(1, (6,)), mean_squared_error, optax.sgd(0.5), 2, num_context=3
  )
  params = learner.init(RNG, SUPPORT.inputs)
  assert params["params"]["Dense_0"]["kernel"].shape == (1 + 3, 6)
  adapted = jax.jit(learner.adapt)(params, SUPPORT, RNG)
  chex.assert_trees_all_equal(adapted["params"], params)
  assert adapted["context"].shape == (3,)
  assert np.all(adapted["context"] != 0)


@pytest.mark.slow
def test_context_of_images_is_in_further_channels():
  model = conv4(2, filters=8, num_blocks=1, normalization="none")
  learner = cavia(model, cross_entropy, optax.sgd(1.0), 1, num_context=2)
  images = jax.random.normal(RNG, (4, 6, 6, 1))
  params = learner.init(RNG, images)
  support = Batch(images, jnp.array([0, 1, 0, 1]))
  adapted = jax.jit(learner.adapt)(params, support, RNG)
  context = jnp.broadcast_to(adapted["context"], (4, 6, 6, 2))
  np.testing.assert_allclose(
    learner.predict(adapted, images),
    model.apply(params, jnp.concatenate([images, context], axis=-1)),
    rtol=1e-6,
  )


@pytest.mark.slow
def test_first_order_takes_no_gradient_through_the_loop():
  """The gradient is that of the query at a context that is a constant."""
  learner = cavia(
    Line, mean_squared_error, optax.sgd(0.5), 1, True, num_context=1
  )
  weights = jnp.array([[2.0], [-3.0]])
  episodes = jax.tree.map(lambda x: x[None], jax.jit(sinusoid(4, 6))(RNG))
  grads, _ = learner.meta_grad(weights, episodes, RNG)
  context = learner.adapt(weights, SUPPORT, RNG)["context"][0]
  x, y, _ = jax.tree.map(lambda a: np.asarray(a[0]), episodes.query)
  wide = np.concatenate([x, np.full_like(x, context)], axis=1)
  expected = 2 * wide.T @ (wide @ np.asarray(weights) - y) / len(x)
  np.testing.assert_allclose(grads, expected, rtol=1e-4)


def test_no_context_is_refused():
  with pytest.raises(ValueError, match="num_context=0: must be 1 or more"):
    cavia(Line, mean_squared_error, optax.sgd(0.5), 1, num_context=0)
