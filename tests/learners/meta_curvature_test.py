"""Meta-Curvature against MAML and against numpy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import maml, meta_curvature
from metajax.losses import cross_entropy
from metajax.models.conv import conv4
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
NETWORK = conv4(2, filters=3, num_blocks=1, normalization="none")
RATE = 0.1


def _batch(seed):
  draw = np.random.default_rng(seed).normal(size=(1, 4, 4, 4, 2))
  return Batch(jnp.asarray(draw, jnp.float32), jnp.arange(4)[None] % 2)


EPISODES = Episode(_batch(0), _batch(1))
SUPPORT = jax.tree.map(lambda x: x[0], EPISODES.support)


def _build(constructor):
  return constructor(NETWORK, cross_entropy, optax.sgd(RATE), 1)


@functools.cache
def _start():
  return jax.jit(_build(meta_curvature).init)(RNG, SUPPORT.inputs)


@pytest.mark.slow
def test_identities_make_it_maml():
  params, plain = _start(), _build(maml)
  expected, _ = jax.jit(plain.meta_grad)(params["params"], EPISODES, RNG)
  found, _ = jax.jit(_build(meta_curvature).meta_grad)(params, EPISODES, RNG)
  chex.assert_trees_all_close(found["params"], expected, rtol=1e-5, atol=1e-6)
  assert all(np.any(m) for m in jax.tree.leaves(found["curvature"]))


def test_a_step_is_along_the_turned_gradient():
  """Every axis by its matrix, in numpy; the kernel's positions are one axis."""
  draw = np.random.default_rng(2).normal
  params = {
    **_start(),
    "curvature": jax.tree.map(
      lambda m: jnp.asarray(draw(size=m.shape), m.dtype), _start()["curvature"]
    ),
  }
  shapes = jax.tree.map(jnp.shape, params["curvature"])["params"]
  assert shapes["Conv_0"] == {
    "kernel": {"0": (9, 9), "1": (2, 2), "2": (3, 3)},
    "bias": {"0": (3, 3)},
  }
  task = jax.jit(_build(meta_curvature).adapt)(params, SUPPORT, RNG)

  @jax.jit
  @jax.grad
  def gradient(weights):
    return cross_entropy(
      NETWORK.apply(weights, SUPPORT.inputs), SUPPORT.targets
    )

  grads = jax.tree.map(np.float64, gradient(params["params"]))["params"]
  curvature = jax.tree.map(np.float64, params["curvature"])["params"]
  before, after = (
    jax.tree.map(np.float64, p)["params"] for p in (params["params"], task)
  )
  for layer in grads:
    for name, gradient in grads[layer].items():
      m = list(curvature[layer][name].values())
      if gradient.ndim == 4:
        flat = gradient.reshape(9, 2, 3)
        turned = np.einsum("pio,ap,bi,co->abc", flat, *m).reshape(3, 3, 2, 3)
      else:
        turned = {
          1: lambda g, m: m[0] @ g,
          2: lambda g, m: m[0] @ g @ m[1].T,
        }[gradient.ndim](gradient, m)
      np.testing.assert_allclose(
        after[layer][name],
        before[layer][name] - RATE * turned,
        rtol=1e-4,
        atol=1e-5,
      )
