"""A penalty of each layer, and the strength of an augmentation, are learned.

The network and its inner training are those of a user. The hypergradients are
compared with finite differences in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import bilevel
from metajax.losses import cross_entropy

pytestmark = pytest.mark.slow
EXAMPLES, FEATURES, CLASSES = 24, 4, 3


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _data(seed):
  draw = np.random.default_rng(seed)
  targets = draw.integers(CLASSES, size=EXAMPLES)
  inputs = draw.normal(size=(EXAMPLES, FEATURES))
  inputs[:, :CLASSES] += np.eye(CLASSES)[targets]
  return inputs, targets


(X, Y), (X_NEW, Y_NEW) = _data(0), _data(1)


def _start():
  draw = np.random.default_rng(2).normal
  first = {"kernel": draw(size=(FEATURES, 5)), "bias": draw(size=5)}
  second = {"kernel": draw(size=(5, CLASSES)), "bias": draw(size=CLASSES)}
  return {"first": first, "second": second}


def _logits(params, inputs):
  """Of a smooth network, whose training converges to a minimum."""
  first, second = params["first"], params["second"]
  hidden = jnp.tanh(inputs @ first["kernel"] + first["bias"])
  return hidden @ second["kernel"] + second["bias"]


def _outer_loss(params, outer):
  del outer
  return cross_entropy(_logits(params, X_NEW), Y_NEW)


def _both(outer, solver):
  """Returns gradients, those of central differences, and the whole result."""
  state = solver.init(_start(), outer)
  gradient = jax.jit(bilevel.hypergradient(solver, _outer_loss))
  found = gradient(state, outer)
  flat, unravel = jax.flatten_util.ravel_pytree(outer)
  expected = np.array(
    [
      (
        gradient(state, unravel(flat + moved)).value
        - gradient(state, unravel(flat - moved)).value
      )
      / 2e-5
      for moved in 1e-5 * np.eye(len(flat))
    ]
  )
  grads, _ = jax.flatten_util.ravel_pytree(found.grads)
  assert (np.abs(expected) > 1e-6).all()
  return grads, expected, found


@pytest.mark.parametrize("method", ["unrolled", "implicit"])
def test_penalty_of_each_layer_has_the_gradient_of_finite_differences(method):
  def inner_loss(params, outer, step):
    del step
    loss = cross_entropy(_logits(params, X), Y)
    squares = jax.tree.map(
      lambda s, x: jnp.exp(s) * (x**2).sum(), outer, params
    )
    return loss + sum(jax.tree.leaves(squares))

  outer = jax.tree.map(lambda x: np.float64(-3.0 - x.ndim), _start())
  if method == "unrolled":
    solver = bilevel.unrolled(inner_loss, optax.sgd(0.5, momentum=0.9), 15)
    tolerance = 1e-6
  else:
    solver = bilevel.implicit(
      inner_loss, optax.sgd(0.2, momentum=0.9), 3000, bilevel.direct()
    )
    tolerance = 1e-4
  grads, expected, found = _both(outer, solver)
  np.testing.assert_allclose(grads, expected, rtol=tolerance)
  if method == "implicit":
    bilevel.check(found, tolerance=1e-7)


def test_strength_of_an_augmentation_has_the_gradient_of_differences():
  """Noise of a learned deviation for each feature, drawn anew in each step."""

  def inner_loss(params, outer, step):
    key = jax.random.fold_in(jax.random.key(1), step)
    noise = jnp.exp(outer) * jax.random.normal(key, X.shape)
    return cross_entropy(_logits(params, X + noise), Y)

  solver = bilevel.unrolled(inner_loss, optax.sgd(0.5), 15)
  outer = np.log([0.1, 0.3, 0.5, 1.0])
  grads, expected, _ = _both(outer, solver)
  np.testing.assert_allclose(grads, expected, rtol=1e-6)
  # The last feature is noise of the data, and wants more of it.
  assert grads[3] < 0
