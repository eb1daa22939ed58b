"""Running averages of batch statistics, against numpy; masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.forward import forward
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.normalization import NORMALIZATIONS, statistics
from metajax.types import State

RNG = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (6, 5)) * 3 + 1
MOMENTUM = 0.99  # flax's.


def _mlp():
  model = forward(MLP(2, (4,), "running"))
  params = model.init(RNG, INPUTS)
  return model, params, params["params"]["Dense_0"]


def test_running_is_the_batchs_in_training_and_its_average_in_evaluation():
  model, params, first = _mlp()
  batch = forward(MLP(2, (4,), "batch"))
  trained, new = model.train(params, INPUTS, RNG)
  np.testing.assert_allclose(
    trained, batch.apply({"params": params["params"]}, INPUTS), rtol=1e-5
  )
  hidden = np.float64(INPUTS) @ np.float64(first["kernel"])
  mean, var = 0.01 * hidden.mean(0), MOMENTUM + 0.01 * hidden.var(0)
  assert isinstance(new["batch_stats"], State)
  stats = new["batch_stats"].value["BatchNorm_0"]
  np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
  np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
  head = params["params"]["Dense_1"]
  seen = np.maximum((hidden - mean) / np.sqrt(var + 1e-5), 0)
  np.testing.assert_allclose(
    model.apply(new, INPUTS),
    seen @ np.float64(head["kernel"]) + head["bias"],
    rtol=1e-4,
    atol=1e-6,
  )


def test_padding_counts_in_no_statistic():
  model, params, _ = _mlp()
  mask = jnp.arange(6) < 4
  padded, state = model.train(params, INPUTS, RNG, mask=mask)
  plain, expected = model.train(params, INPUTS[:4], RNG)
  np.testing.assert_allclose(padded[:4], plain, rtol=1e-5, atol=1e-6)
  for found, other in zip(
    *map(jax.tree.leaves, (state, expected)), strict=True
  ):
    np.testing.assert_allclose(found, other, rtol=1e-6)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_images_are_judged_alone_but_for_the_batchs_statistics(name):
  model = forward(conv4(2, filters=8, num_blocks=2, normalization=name))
  images = jax.random.normal(RNG, (3, 4, 4, 1))
  params = model.init(RNG, images)
  apply = jax.jit(model.apply)
  alone = np.concatenate([apply(params, images[i : i + 1]) for i in range(3)])
  together = apply(params, images)
  same = np.allclose(together, alone, rtol=1e-4, atol=1e-5)
  assert same == (statistics(name) != "batch")
  moved = jax.tree.leaves(jax.jit(model.train)(params, images, RNG)[1])
  pairs = zip(jax.tree.leaves(params), moved, strict=True)
  changes = any(not np.array_equal(*pair) for pair in pairs)
  assert changes == (statistics(name) == "running")
