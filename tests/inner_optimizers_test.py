"""Every optimizer of optax as the inner one: its steps and its derivatives."""

import contextlib
import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import inner_loop, optimizers
from tests.optimizers import OPTIMIZERS, each, plain_loop

# Exact in float32, in which `dog` keeps them.
PARAMS = {
  "w": np.array([[0.5, -0.25], [0.125, 0.75]]),
  "b": np.array([0.125, -0.25]),
}
# What is no weight; but optimizers with masks by name have none for these, and
# optax's galore takes no tree with None.
OTHERS = {"count": np.int32(3), "absent": None}
NAMED = "freeze masked multi_transform partition scale_by_muon".split()
NAMED += ["selective_transform", "galore", "scale_by_galore"]
INPUTS = np.array([[1.0, 0.5], [-0.3, 0.7], [0.2, -1.0]])
TARGETS = np.array([[1.0, -1.0], [0.5, 0.3], [-0.2, 0.1]])
STEPS = 5

DOCS = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _documented():
  """Name -> the heading under which docs/optimizers.md lists it."""
  found = {}
  for section in DOCS.read_text().split("\n## ")[1:]:
    heading, text = section.split("\n", 1)
    rows = [line.split("|")[1] for line in text.splitlines() if "|" in line]
    for name in re.findall(r"`([^`]+)`", " ".join(rows)):
      found[name] = heading
  return found


FAULTS = {
  "NaN at any gradient": "NaN at any gradient",
  "NaN where gradients are zero": "NaN where gradients are zero",
  "A step size that is searched for": "searches for a step size",
}


def _loss(params, k, scale=1.0):
  """Of 0 times it, all gradients are zero."""
  outputs = jnp.tanh(INPUTS @ params["w"] + params["b"])
  return scale * jnp.mean((outputs - TARGETS - 0.1 * k) ** 2)


@functools.cache
def _outer(name):
  """A compiled loss of adapted parameters, with its gradient."""
  optimizer = OPTIMIZERS[name]()
  others = {} if name in NAMED else OTHERS

  def outer(params, scale):
    adapted = inner_loop.minimize(
      lambda params, k: _loss(params, k, scale),
      {**params, **others},
      optimizer,
      STEPS,
    ).params
    values = [jnp.sin(2 * adapted[k]).sum() for k in PARAMS]
    return sum(values), adapted

  return jax.jit(jax.value_and_grad(outer, (0, 1), has_aux=True))


def _all_finite(tree):
  return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@pytest.mark.filterwarnings("ignore:Specifying a key")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
  "name", each(also=("adamw", "radam", "scale_by_zoom_linesearch"))
)
def test_steps_are_those_of_optax_and_derivatives_exact_or_warned_of(name):
  heading = _documented().get(name)
  warned = (
    pytest.warns(UserWarning, match=FAULTS[heading])
    if heading
    else contextlib.nullcontext()
  )
  with warned:
    (_, adapted), grads = _outer(name)(PARAMS, 1.0)
  trained, state = plain_loop(name, _loss, PARAMS, range(STEPS))
  if name == "lookahead":
    expected = trained.slow
  else:
    expected = optimizers.evaluation_params(state, trained)
  found = {key: adapted.pop(key) for key in PARAMS}
  chex.assert_trees_all_close(found, expected, rtol=1e-9)
  assert adapted == ({} if name in NAMED else OTHERS)

  at_zero = _outer(name)(PARAMS, 0.0)[1]
  if heading == "NaN at any gradient":
    assert not _all_finite(grads)
    return
  assert _all_finite(grads)
  assert _all_finite(at_zero) == (heading != "NaN where gradients are zero")
  if heading != "A step size that is searched for" and name != "lbfgs":
    # Central differences along a direction. galore's SVD is in float32.
    step, rtol = (1e-3, 1e-4) if "galore" in name else (1e-5, 1e-5)
    along = {"w": np.array([[0.3, -0.5], [0.7, 0.2]]), "b": np.array([0.4, 1])}
    moved = [
      jax.tree.map(lambda p, d, h=h: p + h * d, (PARAMS, 1.0), (along, 0.6))
      for h in (step, -step)
    ]
    (up, _), (down, _) = (_outer(name)(*arguments)[0] for arguments in moved)
    slope = sum(
      jax.tree.leaves(
        jax.tree.map(lambda g, d: (g * d).sum(), grads, (along, 0.6))
      )
    )
    np.testing.assert_allclose(
      slope, (up - down) / (2 * step), rtol=rtol, atol=1e-9
    )


def test_documented_names_are_those_of_optimizers():
  assert set(_documented()) <= set(OPTIMIZERS)
  assert set(_documented().values()) == set(FAULTS)


def _gradient(optimizer, params=2.0, **options):
  def outer(params):
    return sum(
      jax.tree.leaves(
        inner_loop.minimize(
          lambda params, k: sum(x**2 for x in jax.tree.leaves(params)) / 2,
          params,
          optimizer,
          2,
          **options,
        ).params
      )
    )

  return jax.grad(outer)(params)


def test_nobody_is_warned_who_differentiates_nothing():
  optimizer = optax.adam(0.1)
  inner_loop.minimize(lambda x, k: x**2, 2.0, optimizer, 2)
  assert _gradient(optimizer, 0.0, first_order=True) == 1
  with pytest.warns(UserWarning, match="eps_root") as caught:
    _gradient(optimizer)
  assert len(caught) == 1


def test_mask_that_fits_these_parameters_alone_is_tried_on_them():
  optimizer = optax.masked(optax.adam(0.1), {"x": True, "y": False})
  with pytest.warns(UserWarning, match="eps_root"):
    _gradient(optimizer, {"x": 2.0, "y": 1.0})


def test_optimizer_with_a_learned_step_size_is_not_tried():
  """With x^2 / 2 and momentum 0: two steps give (1 - r)^2 x."""

  def adapted(rate):
    optimizer = optax.inject_hyperparams(optax.sgd)(rate)
    return inner_loop.minimize(lambda x, k: x**2 / 2, 2.0, optimizer, 2).params

  np.testing.assert_allclose(jax.grad(adapted)(0.1), -2 * 0.9 * 2, rtol=1e-12)


def test_first_order_of_a_line_search_is_the_identity():
  optimizer = optax.chain(
    optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)
  )
  assert _gradient(optimizer, first_order=True) == 1


def test_steps_may_be_accumulated():
  """x^2 / 2, and a step for each two equal gradients: x falls to 0.75 x."""
  optimizer = optax.MultiSteps(optax.sgd(0.25), 2)
  found = inner_loop.minimize(lambda x, k: x**2 / 2, 2.0, optimizer, 4).params
  assert found == 2 * 0.75**2
