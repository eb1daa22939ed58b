"""Every optimizer of optax as the outer one, against plain loops with optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.training import evaluation_params
from metajax.training.state import first_state, next_state
from tests.optimizers import NO_OPTIMIZERS, OPTIMIZERS, exported

PARAMS = {
  "w": np.array([[0.5, -0.3], [0.2, 0.8]]),
  "b": np.array([0.1, -0.2]),
}
INPUTS = np.array([[1.0, 0.5], [-0.3, 0.7], [0.2, -1.0]])
TARGETS = np.array([[1.0, -1.0], [0.5, 0.3], [-0.2, 0.1]])
KEY, RNG = jax.random.key(2), jax.random.key(1)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _loss(params, shift=0.0):
  outputs = jnp.tanh(INPUTS @ params["w"] + params["b"])
  return jnp.mean((outputs - TARGETS - shift) ** 2)


# What each takes beside the gradient, by optax's documentation.
VALUE, SEARCH = {"value"}, {"value", "grad", "value_fn"}
TAKES = {
  "lbfgs": SEARCH,
  "momo": VALUE,
  "momo_adam": VALUE,
  "polyak_sgd": VALUE,
  "reduce_on_plateau": VALUE,
  "scale_by_polyak": VALUE,
  "scale_by_backtracking_linesearch": SEARCH,
  "scale_by_zoom_linesearch": SEARCH,
  "sophia": {"obj_fn"},
  "hutchinson_estimator_diag_hessian": {"obj_fn"},
  "sam opaque": {"grad_fn"},
}


def _plain(name, losses):
  """A loop with optax alone; returns what it trains and what to evaluate."""
  optimizer = OPTIMIZERS[name]()
  params = jax.tree.map(jnp.asarray, PARAMS)
  pair = optax.LookaheadParams.init_synced(params)
  trained = pair if name == "lookahead" else params
  state = optimizer.init(trained)

  @jax.jit
  def step(trained, state, shift):
    def loss(params):
      return _loss(params, shift)

    params = trained.fast if name == "lookahead" else trained
    value, grads = jax.value_and_grad(loss)(params)
    all_there_is = {
      "value": value,
      "grad": grads,
      "value_fn": loss,
      "obj_fn": loss,
      "grad_fn": lambda params, _: jax.grad(loss)(params),
    }
    extra = {k: all_there_is[k] for k in TAKES.get(name, ())}
    updates, state = optimizer.update(grads, state, trained, **extra)
    return optax.apply_updates(trained, updates), state

  for shift in losses:
    trained, state = step(trained, state, shift)
  return trained, state


@jax.jit
def _value_and_grad(params, shift):
  return jax.value_and_grad(_loss)(params, shift)


def test_table_has_every_optimizer_that_optax_exports():
  assert exported() <= {*OPTIMIZERS, *NO_OPTIMIZERS}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:Specifying a key")
def test_updates_are_those_of_a_plain_loop(name):
  optimizer = OPTIMIZERS[name]()
  state = first_state(optimizer, jax.tree.map(jnp.asarray, PARAMS))

  @jax.jit
  def step(state, shift):
    def at(params):
      value, grads = jax.value_and_grad(_loss)(params, shift)
      return grads, {"loss": value}

    grads, metrics = at(state.meta_params)
    return next_state(optimizer, state, grads, metrics["loss"], at=at)

  shifts = [0.0, 0.1, -0.2, 0.0]
  for shift in shifts:
    state = step(state, shift)
  assert state.step == len(shifts)  # None was taken for not finite.
  expected, _ = _plain(name, shifts)
  if name == "lookahead":
    chex.assert_trees_all_close(
      evaluation_params(state), expected.slow, rtol=1e-9
    )
    expected = expected.fast
  chex.assert_trees_all_close(state.meta_params, expected, rtol=1e-9)
  if name not in ("set_to_zero", "sam"):
    assert not np.allclose(state.meta_params["w"], PARAMS["w"], rtol=0, atol=1e-9)
