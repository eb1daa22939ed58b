"""Running statistics of averages, against those of all data in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from metajax.aggregation import refresh_statistics, weighted_average
from metajax.forward import forward
from metajax.models.mlp import MLP

RNG = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(1.0, 2.0, (64, 3)).astype(np.float32)
MODEL = forward(MLP(2, (4,), "running"))


def _draw(inputs, rng):
  """All examples, in an order of chance."""
  return jax.random.permutation(rng, inputs)


def _models():
  return jax.vmap(MODEL.init, (0, None))(jax.random.split(RNG, 2), INPUTS)


def test_statistics_are_those_of_the_average_and_not_their_average():
  average = weighted_average(_models())
  found = refresh_statistics(
    MODEL, average, Partial(_draw, INPUTS), RNG, num_batches=500
  )
  first = average["params"]["Dense_0"]
  hidden = np.float64(INPUTS) @ np.float64(first["kernel"]) + first["bias"]
  stats = found["batch_stats"].value["BatchNorm_0"]
  left = 0.99**500
  np.testing.assert_allclose(
    stats["mean"], (1 - left) * hidden.mean(0), rtol=1e-4
  )
  np.testing.assert_allclose(
    stats["var"], left + (1 - left) * hidden.var(0), rtol=1e-4
  )
  for a, b in zip(
    *map(jax.tree.leaves, (found["params"], average["params"])), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_batches_are_drawn_anew():
  keys = []

  def draw(rng):
    jax.debug.callback(
      lambda x: keys.append(tuple(x.tolist())), jax.random.key_data(rng)
    )
    return jnp.asarray(INPUTS)

  params = jax.tree.map(lambda x: x[0], _models())
  jax.block_until_ready(
    refresh_statistics(MODEL, params, draw, RNG, num_batches=3)
  )
  jax.effects_barrier()
  assert len(keys) == len(set(keys)) == 3


def test_a_model_without_statistics_stays_as_it_is():
  model = forward(MLP(2, (4,), "batch"))
  params = model.init(RNG, INPUTS)

  def never(rng):
    raise AssertionError

  assert refresh_statistics(model, params, never, RNG) is params


def test_numbers_of_batches_are_checked():
  with pytest.raises(ValueError, match="^num_batches=0: must be"):
    refresh_statistics(MODEL, {}, lambda rng: INPUTS, RNG, num_batches=0)
