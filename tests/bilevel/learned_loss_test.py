"""A learned loss, against losses that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import bilevel, inner_loop

draw = np.random.default_rng(0).normal
INPUTS, NEW = draw(size=(2, 20, 3))
SLOPES = draw(size=(3, 1))
TARGETS = INPUTS @ SLOPES + 0.1 * draw(size=(20, 1))


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def trained(loss, num_steps=3):
  return inner_loop.minimize(
    lambda w, step: loss(INPUTS @ w, TARGETS),
    jnp.zeros((3, 1)),
    optax.sgd(0.2),
    num_steps,
  ).params


def squared(predictions, targets):
  return jnp.square(predictions - targets).mean()


def test_network_that_is_the_absolute_error_trains_as_it():
  """|p - t| = relu(p - t) + relu(t - p)."""
  learned = bilevel.learned_loss(1, (2,))
  signs = np.array([[1.0, -1.0], [-1.0, 1.0]])
  layers = {
    "Dense_0": {"kernel": signs, "bias": np.zeros(2)},
    "Dense_1": {"kernel": np.ones((2, 1)), "bias": np.zeros(1)},
  }

  @jax.jit
  def both():
    of_network = functools.partial(learned.loss, {"params": layers})
    return trained(of_network), trained(lambda p, t: jnp.abs(p - t).mean())

  np.testing.assert_allclose(*both(), rtol=1e-12)


def _gradient(learned):
  solver = bilevel.unrolled(
    lambda w, phi, step: learned.loss(phi, INPUTS @ w, TARGETS),
    optax.sgd(0.2),
    3,
  )
  gradient = bilevel.hypergradient(
    solver, lambda w, phi: squared(NEW @ w, NEW @ SLOPES)
  )
  return lambda phi: gradient(solver.init(jnp.zeros((3, 1)), phi), phi)


@pytest.mark.slow
def test_meta_trained_loss_trains_nearly_as_well_as_the_exact_one():
  learned = bilevel.learned_loss(1, (16,))
  optimizer = optax.adam(0.01)
  gradient = _gradient(learned)

  def step(carry, _):
    phi, state = carry
    found = gradient(phi)
    updates, state = optimizer.update(found.grads, state)
    return (optax.apply_updates(phi, updates), state), found.value

  phi = jax.tree.map(
    lambda x: jnp.asarray(x, float), learned.init(jax.random.key(0))
  )
  carry, losses = jax.jit(
    lambda: jax.lax.scan(step, (phi, optimizer.init(phi)), length=300)
  )()
  found, exact = (
    squared(INPUTS @ trained(loss), INPUTS @ SLOPES)
    for loss in (functools.partial(learned.loss, carry[0]), squared)
  )
  start = squared(0 * TARGETS, INPUTS @ SLOPES)
  assert losses[0] > 0.5 * start
  assert found < max(exact, 0.05 * start)


@pytest.mark.slow
def test_gradient_of_a_learned_loss_is_that_of_finite_differences():
  learned = bilevel.learned_loss(1, (4,))
  phi = learned.init(jax.random.key(1))
  flat, unravel = jax.flatten_util.ravel_pytree(
    jax.tree.map(lambda x: jnp.asarray(x + 0.1 * draw(size=x.shape)), phi)
  )
  gradient = jax.jit(_gradient(learned))
  slopes = jax.flatten_util.ravel_pytree(gradient(unravel(flat)).grads)[0]
  along = draw(size=flat.size)
  ends = [gradient(unravel(flat + h * along)).value for h in (1e-6, -1e-6)]
  expected = (ends[0] - ends[1]) / 2e-6
  assert abs(expected) > 1e-4
  np.testing.assert_allclose(slopes @ along, expected, rtol=1e-6)


def test_bad_shapes_are_named():
  with pytest.raises(ValueError, match="num_outputs=0: must be 1 or more"):
    bilevel.learned_loss(0)
  with pytest.raises(
    ValueError, match=r"targets \(4,\): both must be \[n, 2\]"
  ):
    bilevel.learned_loss(2).loss(None, np.zeros((4, 2)), np.zeros(4))
