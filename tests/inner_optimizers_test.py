"""Every optimizer of optax as the inner one: its steps and its derivatives."""

import contextlib
import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import inner_loop, optimizers
from tests.optimizers import OPTIMIZERS, each, plain_loop

PARAMS = {
  "w": np.array([[0.5, -0.3], [0.2, 0.8]]),
  "b": np.array([0.1, -0.2]),
}
# What is no weight; but optimizers with masks by name have none for these.
OTHERS = {"count": np.int32(3), "absent": None}
NAMED = "freeze masked multi_transform partition scale_by_muon".split()
NAMED += ["selective_transform"]
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
  if heading != "A step size that is searched for":
    # Central differences along a direction.
    along = {"w": np.array([[0.3, -0.5], [0.7, 0.2]]), "b": np.array([0.4, 1])}
    moved = [
      jax.tree.map(lambda p, d, h=h: p + h * d, (PARAMS, 1.0), (along, 0.6))
      for h in (1e-5, -1e-5)
    ]
    (up, _), (down, _) = (_outer(name)(*arguments)[0] for arguments in moved)
    slope = sum(
      jax.tree.leaves(
        jax.tree.map(lambda g, d: (g * d).sum(), grads, (along, 0.6))
      )
    )
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-5, atol=1e-9)
