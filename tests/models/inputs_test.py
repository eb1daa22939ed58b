"""Models that change their inputs are the model of the changed inputs."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.forward import forward
from metajax.models.adapters import from_linen
from metajax.models.conv import conv4
from metajax.models.inputs import check_images, on_inputs
from metajax.models.resnet import resnet12

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


NETWORKS = [conv4(None, filters=2), resnet12(None, filters=(1, 1, 1, 1))]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 784), (1, 2, 8, 8, 1)])
def test_images_without_channels_are_refused(network, shape):
  with pytest.raises(ValueError, match=r"^inputs of shape \(.*\): must be im"):
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_channels_first_are_warned_of(channels):
  with pytest.warns(
    UserWarning, match=f"{channels} x 8 pixels with 8 channels"
  ):
    jax.eval_shape(
      NETWORKS[0].init, jax.random.key(0), jnp.zeros((2, channels, 8, 8))
    )


def test_images_in_bytes_are_warned_of():
  with pytest.warns(UserWarning, match="^inputs: uint8 images are .* divide"):
    check_images(jnp.zeros((2, 8, 8, 3), jnp.uint8))


@pytest.mark.parametrize(
  "shape",
  [(2, 8, 8, 1), (2, 8, 8, 3), (2, 1, 1, 1), (2, 3, 3, 3), (2, 8, 6, 6)],
)
def test_other_images_are_not(shape):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    check_images(jnp.zeros(shape))
