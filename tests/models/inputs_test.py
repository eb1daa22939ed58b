"""Models that change their inputs are the model of the changed inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.forward import forward
from metajax.models.adapters import from_linen
from metajax.models.inputs import on_inputs

PIXELS = jnp.arange(24, dtype=jnp.uint8).reshape(4, 6)


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, mask=None, train=False):
    x = nn.BatchNorm(use_running_average=not train)(
      x, mask=None if mask is None else mask[:, None]
    )
    return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))


def _scaled(pixels):
  return pixels.astype(jnp.float32) / 255


@pytest.mark.slow
def test_it_is_the_model_of_the_changed_inputs():
  plain, changed = forward(from_linen(Net())), on_inputs(Net(), _scaled)
  key, mask = jax.random.key(0), jnp.array([True, True, True, False])
  params = changed.init(key, PIXELS)
  same = plain.init(key, _scaled(PIXELS))
  jax.tree.map(np.testing.assert_array_equal, params, same)
  found = changed.train(params, PIXELS, key, mask=mask)
  expected = plain.train(params, _scaled(PIXELS), key, mask=mask)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  np.testing.assert_array_equal(
    changed.apply(found[1], PIXELS), plain.apply(found[1], _scaled(PIXELS))
  )
  # Integers as they are would not be what the network has seen.
  assert not np.allclose(
    changed.apply(params, PIXELS), plain.apply(params, PIXELS * 1.0)
  )
