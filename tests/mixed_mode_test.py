"""Mixed-mode gradients against reverse over reverse, and what they store."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import inner_loop, mixed_mode

RNG = jax.random.key(0)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _data():
  """Three tasks: inputs and integer labels, different in each."""
  x = jax.random.normal(RNG, (3, 5, 4))
  return x, jax.random.randint(RNG, (3, 5), 0, 3)


def _theta():
  keys = jax.random.split(jax.random.key(1), 2)
  return {
    "phi": {
      "w": jax.random.normal(keys[0], (4, 6)),
      "v": jax.random.normal(keys[1], (6, 3)),
    },
    "scale": jnp.array(1.2),
    "weights": jnp.linspace(-1, 1, 5),
    "rate": jnp.array(0.7),
  }


def _meta_gradient(value_and_grad):
  """Of an initialisation, learned loss weights, a scale and a step size."""

  def meta_loss(theta, x, y):
    def loss(phi, power):
      logits = theta["scale"] * jnp.tanh(x @ phi["w"]) @ phi["v"]
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
      return (losses * jax.nn.sigmoid(theta["weights"])).mean() ** power

    def step(phi, power):
      value, grads = value_and_grad(loss)(phi, power)
      phi = jax.tree.map(lambda p, g: p - 0.3 * theta["rate"] * g, phi, grads)
      return phi, value

    phi, values = jax.lax.scan(step, theta["phi"], jnp.array([1, 2, 1]))
    # Values on the way have gradients of their own.
    return loss(phi, 1) + 0.1 * jnp.sin(values).sum()

  def mean(theta, x, y):
    return jax.vmap(meta_loss, (None, 0, 0))(theta, x, y).mean()

  return jax.jit(jax.grad(mean))


@pytest.mark.slow
def test_meta_gradient_is_that_of_reverse_over_reverse(float64):
  theta, data = _theta(), _data()
  expected = _meta_gradient(jax.value_and_grad)(theta, *data)
  found = _meta_gradient(mixed_mode.value_and_grad)(theta, *data)
  for name, leaf in jax.tree.leaves_with_path(expected):
    assert np.abs(leaf).max() > 1e-4, name
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected
  )


@pytest.mark.slow
def test_first_derivative_is_the_gradient(float64):
  phi = _theta()["phi"]

  def loss(phi):
    return jnp.sin(phi["w"]).sum() * (phi["v"] ** 2).sum()

  value, grads = mixed_mode.value_and_grad(loss)(phi)
  np.testing.assert_allclose(value, loss(phi), rtol=1e-12)
  np.testing.assert_allclose(
    grads["v"], 2 * phi["v"] * jnp.sin(phi["w"]).sum(), rtol=1e-12
  )


def test_bfloat16_parameters_keep_their_type():
  phi = jnp.ones(3, jnp.bfloat16)

  def meta(phi):
    # The loss is float32, its gradient bfloat16.
    loss = lambda p: (p.astype(jnp.float32) ** 3).sum()  # noqa: E731
    value, grads = mixed_mode.value_and_grad(loss)(phi)
    return value + grads.astype(jnp.float32).sum()

  found = jax.grad(meta)(phi)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found.astype(jnp.float32), 3 + 6)


@pytest.mark.slow
def test_deep_model_leaves_little_behind():
  """A loop of 32 layers: reverse over reverse keeps the layers' all."""

  def outer(layers, x, memory):
    def loss(layers, step):
      del step
      layer = jax.checkpoint(lambda x, w: jnp.tanh(x @ w), prevent_cse=False)
      out, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, layers)
      return jnp.square(out).mean()

    adapted = inner_loop.minimize(
      loss, layers, optax.sgd(0.1), 2, memory=memory
    ).params
    return loss(adapted, 0)

  layers, x = jnp.ones((32, 8, 8)), jnp.ones((512, 8))

  def temporary_bytes(memory):
    grad = jax.jit(jax.grad(lambda layers: outer(layers, x, memory)))
    compiled = grad.lower(layers).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # Measured: 3.9 MB and 8.1 MB.
  assert temporary_bytes("mixed") < temporary_bytes("remat") / 1.5


@pytest.mark.slow
def test_losses_before_each_step_are_differentiated_too(float64):
  """With their own cotangents, beside those of the parameters."""

  def outer(params, scale, memory):
    found = inner_loop.minimize(
      lambda p, k: jnp.sum(jnp.tanh(scale * p) ** 2) + jnp.sum(p**4),
      params,
      optax.adam(0.1, eps_root=1e-8),
      4,
      memory=memory,
    )
    weights = jnp.arange(1.0, 5.0)
    return (weights * found.losses).sum() + jnp.sin(found.params).sum()

  start = jnp.array([0.3, -0.4, 0.7]), jnp.array([1.0, 2.0, 0.5])
  found, expected = (
    jax.grad(outer, (0, 1))(*start, memory) for memory in ("mixed", "plain")
  )
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
def test_second_derivatives_are_those_of_plain_differentiation(float64):
  """A constant factor in the loss: JAX lost it in scans, of rules in rules."""

  def outer(params, memory):
    adapted = inner_loop.minimize(
      lambda p, k: 1.3 * jnp.sum(jnp.sin(p) * p[::-1]),
      params,
      optax.sgd(0.1, momentum=0.9),
      3,
      memory=memory,
    ).params
    return jnp.sum(adapted**3)

  along = jnp.arange(1.0, 4.0)

  def curvature(params, memory):
    return jax.grad(lambda p: jax.grad(outer)(p, memory) @ along)(params)

  start = jnp.array([0.3, -0.4, 0.7])
  expected = curvature(start, "plain")
  np.testing.assert_allclose(curvature(start, "mixed"), expected, rtol=1e-12)
  hessian = jax.hessian(outer)(start, "mixed")
  np.testing.assert_allclose(hessian @ along, expected, rtol=1e-12)
