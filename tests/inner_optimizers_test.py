"""Every optimizer of optax as the inner one, against plain loops with optax."""

import inspect
import re
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from metajax import inner_loop, optimizers
from metajax.differentiability import find_fault
from tests.optimizers import OPTIMIZERS, PARAMS, RATE, plain_loop, tanh_loss

PAGE = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"
SHIFTS = (0.0, 0.1, -0.2)
# Those that here name the parameters of which they have a mask.
MASKS = (
  "freeze",
  "masked",
  "multi_transform",
  "partition",
  "scale_by_muon",
  "selective_transform",
)
# Those to which optax lets no parameter be None.
NEVER_NONE = ("galore", "scale_by_galore")
# What the page says of numbers that are only too small for 32 bits.
IN_32_BITS = ", in 32 bits"
# Each of its kind; all others are slow only.
FEW = (
  "adam",
  "noisy_sgd",
  "sam opaque",
  "sgd",
)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _documented():
  """Reads the page's table: name -> (where it is NaN, what to give)."""
  section = PAGE.read_text().split("## Derivatives that are NaN")[1]
  rows = re.findall(r"^\| (`.*) \| (.*) \| (.*) \|$", section, re.M)
  return {
    name: (where, remedy)
    for names, where, remedy in rows
    for name in re.findall("`(.*?)`", names)
  }


def _contains_adam(name):
  """Whether it is one that is built of others, here of Adam."""
  return {"adam", "_adam"} & set(OPTIMIZERS[name].__code__.co_names)


@pytest.mark.parametrize(
  "name",
  [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
    for name in OPTIMIZERS
  ],
)
@pytest.mark.filterwarnings("ignore:Specifying a key")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs_as_a_plain_loop_and_has_a_derivative_or_warns(name):
  optimizer = OPTIMIZERS[name]()
  params = jax.tree.map(jnp.asarray, PARAMS)
  if name not in MASKS + NEVER_NONE:
    params["masked out"] = None

  @jax.jit
  def outer(params, scale):
    """At scale 0 all gradients are zero."""

    def derived(params, scale):
      loop = inner_loop.minimize(
        lambda p, k: scale * tanh_loss(p, jnp.array(SHIFTS)[k]),
        params,
        optimizer,
        len(SHIFTS),
      )
      return tanh_loss(loop.params) + loop.losses.sum(), loop.params

    return jax.value_and_grad(derived, (0, 1), has_aux=True)(params, scale)

  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    (_, adapted), ordinary = outer(params, 1.0)
  _, at_zero = outer(params, 0.0)

  trained, state = plain_loop(name, SHIFTS)
  if name == "lookahead":
    expected = trained.slow
  else:
    expected = optimizers.evaluation_params(state, trained)
  adapted.pop("masked out", None)
  chex.assert_trees_all_close(adapted, expected, rtol=1e-9)

  fault = find_fault(optimizer, params)
  told = [str(w.message) for w in caught if "inner optimizer" in str(w.message)]
  assert told[:1] == ([f"The inner optimizer {fault}"] if fault else [])
  page = _documented()
  named = name.split()[0]  # As in "sam in a chain".
  if named not in page and _contains_adam(name):
    named = "adam"
  where, _ = page.get(named, ("", ""))
  if not _is_finite(ordinary):
    assert "at any gradient" in fault
  elif not _is_finite(at_zero):
    assert "gradients are zero" in fault or "at any gradient" in fault
  if where.endswith(IN_32_BITS):
    assert not fault
    with jax.enable_x64(False):
      fault = find_fault(optimizer, params)
    assert where.removesuffix(IN_32_BITS) in fault
  elif fault and "NaN" in fault:
    assert where and where in fault
  elif named == name:
    assert not where
  # A step size that is searched for is a constant.
  if _is_finite(ordinary) and "linesearch" not in name and name != "lbfgs":
    _assert_slope(lambda *moved: outer(*moved)[0][0], params, ordinary, name)


def _assert_slope(fn, params, gradient, name):
  """Checks a gradient at (params, 1) by central differences."""
  along = {"w": np.array([[0.3, -0.5], [0.7, 0.2]]), "b": np.array([0.4, 1.0])}
  # galore decomposes in float32.
  step, rtol = (1e-3, 1e-4) if "galore" in name else (1e-5, 1e-5)
  up, down = (
    fn({**params, **{k: params[k] + h * d for k, d in along.items()}}, 1 + h)
    for h in (step, -step)
  )
  slope = gradient[1] + sum(
    (gradient[0][k] * d).sum() for k, d in along.items()
  )
  np.testing.assert_allclose(
    slope, (up - down) / (2 * step), rtol=rtol, atol=1e-9
  )


def _is_finite(tree):
  return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_page_gives_instead_has_derivatives():
  for name, (_, remedy) in _documented().items():
    factory = getattr(optax, name, None) or getattr(contrib, name)
    helps = False
    given = re.search(r"^the same with `(eps.*)=(.*)`$", remedy)
    has_root = "eps_root" in inspect.signature(factory).parameters
    if given or has_root:
      key, number = given.groups() if given else ("eps_root", 1e-8)
      options = {key: float(number)}
      if name.startswith("scale_by"):
        made = optax.chain(factory(**options), optax.scale(-RATE))
      else:
        made = factory(RATE, **options)
      helps = find_fault(made, PARAMS) is None
    assert helps == bool(given), name


@pytest.mark.slow
def test_search_has_the_precision_of_the_caller():
  def init(params):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float64), params)

  def update(grads, state, params=None):
    del params
    return jax.tree.map(lambda x: -0.1 * x, grads), state

  # In 32 bits the zeros would warn, which is an error here.
  with jax.enable_x64(True):
    optimizer = optax.GradientTransformation(init, update)
    assert find_fault(optimizer, jnp.ones(3)) is None


def test_search_finds_a_constant():
  """On x' A x / 2, a step size found by search, with its slope left out."""
  matrix = jnp.diag(jnp.array([1.0, 4.0]))
  optimizer = optax.chain(
    optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)
  )

  def adapted(x):
    loss = lambda x, k: x @ matrix @ x / 2  # noqa: E731
    return inner_loop.minimize(loss, x, optimizer, 1).params

  start = jnp.array([1.0, 0.7])
  with pytest.warns(UserWarning, match="searches for a step size"):
    jacobian = jax.jacrev(adapted)(start)
  rate = ((start - adapted(start)) / (matrix @ start))[0]
  assert 0 < rate < 1
  np.testing.assert_allclose(jacobian, jnp.eye(2) - rate * matrix, rtol=1e-9)


def test_fault_is_looked_for_once():
  adam, calls = optax.adam(0.1), []

  def update(*arguments):
    calls.append(arguments)
    return adam.update(*arguments)

  optimizer = optax.GradientTransformation(adam.init, update)
  faults = [find_fault(optimizer, x) for x in (1.0, jnp.float32(2.0))]
  assert "eps_root=1e-8" in faults[0]
  few = len(calls)
  assert find_fault(optimizer, 3.0) == faults[1] == faults[0]
  assert len(calls) == few


def _step_on_squares(optimizer):
  """A step on the sum of squares of ones, whose gradients are 2."""
  ones = {"w": jnp.ones(2), "b": jnp.ones(2)}

  def loss(params, step):
    return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 2)

  return inner_loop.minimize(loss, ones, optimizer, 1).params


def test_gradients_that_a_mask_passes_on_are_warned_of():
  optimizer = optax.masked(optax.sgd(0.1), {"w": True, "b": False})
  with pytest.warns(UserWarning, match=r"^optimizer: .* to \['b'\], uphill"):
    found = _step_on_squares(optimizer)
  np.testing.assert_allclose(found["w"], 0.8, rtol=1e-6)
  np.testing.assert_allclose(found["b"], 3.0)


def test_parameters_that_stay_are_not_warned_of():
  labels = {"w": "moves", "b": "stays"}
  parts = {"moves": optax.sgd(0.1), "stays": optax.set_to_zero()}
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = _step_on_squares(optax.multi_transform(parts, labels))
  np.testing.assert_allclose(found["b"], 1.0)
