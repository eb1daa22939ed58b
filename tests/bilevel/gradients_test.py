"""Hypergradients of ridge regression, where all of it is linear algebra."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from metajax import bilevel, inner_loop
from tests.optimizers import OPTIMIZERS
from tests.slow import slow_but

FEATURES, EXAMPLES, RATE, STEPS = 3, 8, 0.3, 300
draw = np.random.default_rng(0).normal
X, Y = draw(size=(EXAMPLES, FEATURES)), draw(size=EXAMPLES)
X_NEW, Y_NEW = draw(size=(EXAMPLES, FEATURES)), draw(size=EXAMPLES)
RAW = np.array([-1.0, -0.5, 0.2])  # Logarithms of the penalties.
START = np.zeros(FEATURES)
MEMORIES = get_args(inner_loop.Memory)


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def inner_loss(params, raw, step):
  del step
  error = X @ params - Y
  return error @ error / 2 / EXAMPLES + jnp.exp(raw) @ params**2 / 2


def outer_loss(params, raw):
  """It has an own dependence on the hyper-parameters, and a scale as aux."""
  error = X_NEW @ params - Y_NEW
  return error @ error / 2 / EXAMPLES + 0.1 * raw @ raw, params @ params


def _closed(raw):
  """The minimum, the hypergradient, and the derivative of aux."""
  penalty = np.exp(raw)
  hessian = X.T @ X / EXAMPLES + np.diag(penalty)
  params = np.linalg.solve(hessian, X.T @ Y / EXAMPLES)
  jacobian = -np.linalg.solve(hessian, np.diag(penalty * params))
  slope = X_NEW.T @ (X_NEW @ params - Y_NEW) / EXAMPLES
  return (
    params,
    jacobian.T @ slope + 0.2 * raw,
    2 * jacobian.T @ params,
  )


def _contraction():
  """The slowest factor of a step of gradient descent."""
  hessian = X.T @ X / EXAMPLES + np.diag(np.exp(RAW))
  return 1 - RATE * np.linalg.eigvalsh(hessian)[0]


def _minimum(params, raw):
  del params
  hessian = X.T @ X / EXAMPLES + jnp.diag(jnp.exp(raw))
  return jnp.linalg.solve(hessian, X.T @ Y / EXAMPLES)


SGD = optax.sgd(RATE)
SOLVERS = {
  **{
    f"unrolled_{memory}": bilevel.unrolled(
      inner_loss, SGD, STEPS, memory=memory
    )
    for memory in MEMORIES
  },
  "truncated": bilevel.truncated(inner_loss, SGD, STEPS, STEPS - 50),
  "forward": bilevel.forward(inner_loss, SGD, STEPS),
  "conjugate_gradients": bilevel.implicit(inner_loss, SGD, STEPS),
  "neumann": bilevel.implicit(
    inner_loss, SGD, STEPS, bilevel.neumann(STEPS, RATE)
  ),
  "direct": bilevel.implicit(inner_loss, SGD, STEPS, bilevel.direct()),
  "minimum": bilevel.implicit_minimum(inner_loss, _minimum, bilevel.direct()),
}


@functools.cache
def _compiled(name):
  gradient = bilevel.hypergradient(SOLVERS[name], outer_loss, has_aux=True)

  def both(raw):
    """The hypergradient, and the derivative of its aux and of itself."""
    state = SOLVERS[name].init(START, raw)

    def of(raw):
      found = gradient(state, raw)
      return (found.aux, found.grads), found

    return jax.jacrev(of, has_aux=True)(raw)

  return jax.jit(both)


@pytest.mark.parametrize(
  "name", slow_but(("unrolled_auto", "conjugate_gradients"), SOLVERS)
)
def test_converged_method_has_the_closed_form(name):
  """The hypergradient, the derivative of aux, and the outer Hessian."""
  (jacobian_of_aux, hessian), found = _compiled(name)(RAW)
  params, grads, of_aux = _closed(RAW)
  np.testing.assert_allclose(found.params, params, rtol=1e-7)
  np.testing.assert_allclose(found.grads, grads, rtol=1e-6)
  value, aux = outer_loss(params, RAW)
  np.testing.assert_allclose(found.value, value, rtol=1e-7)
  np.testing.assert_allclose(found.aux, aux, rtol=1e-7)
  np.testing.assert_allclose(jacobian_of_aux, of_aux, rtol=1e-6)
  expected = [
    (_closed(RAW + h)[1] - _closed(RAW - h)[1]) / 2e-5
    for h in 1e-5 * np.eye(FEATURES)
  ]
  np.testing.assert_allclose(hessian, expected, rtol=1e-5, atol=1e-8)
  bilevel.check(found, tolerance=1e-7, linear_tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("of", [bilevel.unrolled, bilevel.forward])
def test_few_steps_equal_finite_differences(of):
  """Of nested parameters, a learned step size, and one inner step's batch."""

  def loss(params, outer, step):
    error = X @ params["w"] + params["b"] - Y
    seen = (jnp.arange(EXAMPLES) + step) % 2
    penalty = jnp.exp(outer["raw"]) @ params["w"] ** 2
    return seen @ error**2 / EXAMPLES + penalty

  def outside(params, outer):
    del outer
    return jnp.square(X_NEW @ params["w"] + params["b"] - Y_NEW).mean()

  solver = of(
    loss, lambda o: optax.sgd(jnp.exp(o["rate"]), momentum=o["momentum"]), 5
  )
  outer = {"raw": RAW, "rate": np.log(0.1), "momentum": 0.7}
  state = solver.init({"w": START, "b": 0.5}, outer)
  gradient = jax.jit(bilevel.hypergradient(solver, outside))
  found = gradient(state, outer)
  for name in outer:
    for at in np.ndindex(np.shape(outer[name])):

      def moved(by, name=name, at=at):
        changed = np.array(outer[name])
        changed[at] += by
        return gradient(state, {**outer, name: changed}).value

      expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
      np.testing.assert_allclose(
        found.grads[name][at], expected, rtol=1e-6, atol=1e-10
      )


def _error_of(solver):
  grads = bilevel.hypergradient(solver, outer_loss, has_aux=True)
  state = solver.init(START, RAW)
  return np.linalg.norm(jax.jit(grads)(state, RAW).grads - _closed(RAW)[1])


@pytest.mark.slow
def test_unrolled_tends_to_the_implicit_gradient_at_its_rate():
  """The error of K steps is K q^K, with q the slowest contraction."""
  q = _contraction()
  steps = np.array([20, 40, 60])
  errors = [_error_of(bilevel.unrolled(inner_loss, SGD, k)) for k in steps]
  rates = np.diff(np.log(errors / steps)) / np.diff(steps)
  np.testing.assert_allclose(rates, np.log(q), rtol=0.03)


@pytest.mark.slow
def test_bias_of_truncation_and_of_the_series_falls_at_the_rate():
  """It is q^last, and truncation at the minimum is the Neumann series."""
  q = _contraction()
  last = np.array([20, 40, 60])
  errors = [_error_of(bilevel.truncated(inner_loss, SGD, 400, k)) for k in last]
  rates = np.diff(np.log(errors)) / np.diff(last)
  np.testing.assert_allclose(rates, np.log(q), rtol=0.05)
  series = [
    _error_of(bilevel.implicit(inner_loss, SGD, 400, bilevel.neumann(k, RATE)))
    for k in last
  ]
  np.testing.assert_allclose(series, errors, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["lookahead", "schedule_free", "sam"])
def test_a_solve_in_parts_is_that_solve(optimizer):
  """Also if the optimizer trains other parameters than it evaluates."""
  trained = OPTIMIZERS[optimizer]()

  def solved(make, num_steps, times):
    solver = make(num_steps)
    state = solver.init(START, RAW)
    for _ in range(times):
      solution = solver.solve(state, RAW)
      state = solution.state
    return solution.params, solution.residual

  def unrolled(n):
    return bilevel.unrolled(inner_loss, trained, n)

  whole = inner_loop.minimize(
    lambda p, k: inner_loss(p, RAW, k), jnp.asarray(START), trained, 3
  ).params
  slope = jax.grad(inner_loss)(whole, RAW, 0)
  for make, num_steps, times in (
    (unrolled, 3, 1),
    (unrolled, 1, 3),
    (lambda n: bilevel.truncated(inner_loss, trained, n, 1), 3, 1),
    (lambda n: bilevel.implicit(inner_loss, trained, n), 1, 3),
  ):
    found, residual = solved(make, num_steps, times)
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    np.testing.assert_allclose(residual, np.linalg.norm(slope), rtol=1e-6)


def test_one_step_is_t1_t2():
  """Minus the step size, times the mixed derivative, times the outer slope."""
  solver = bilevel.truncated(inner_loss, SGD, 4)
  gradient = bilevel.hypergradient(solver, outer_loss, has_aux=True)
  found = jax.jit(gradient)(solver.init(START, RAW), RAW)
  before = START
  for _ in range(3):
    before = before - RATE * jax.grad(inner_loss)(before, RAW, 0)
  slope = X_NEW.T @ (X_NEW @ found.params - Y_NEW) / EXAMPLES
  expected = -RATE * np.exp(RAW) * before * slope + 0.2 * RAW
  np.testing.assert_allclose(found.grads, expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conjugate_gradients", "neumann", "direct"])
def test_hessian_around_an_implicit_solve(name):
  """Forward over reverse mode, without `hypergradient`."""
  solver = SOLVERS[name]
  state = solver.init(START, RAW)

  def value(raw):
    return outer_loss(solver.solve(state, raw).params, raw)[0]

  expected = [
    (_closed(RAW + h)[1] - _closed(RAW - h)[1]) / 2e-5
    for h in 1e-5 * np.eye(FEATURES)
  ]
  found = jax.jit(jax.hessian(value))(RAW)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_vmap_over_hyper_parameters_and_a_warm_start():
  solver = SOLVERS["conjugate_gradients"]
  gradient = bilevel.hypergradient(solver, outer_loss, has_aux=True)
  many = np.stack([RAW, RAW + 0.5, -RAW])
  states = jax.vmap(solver.init, (None, 0))(START, many)
  found = jax.jit(jax.vmap(gradient))(states, many)
  expected = [_closed(raw)[1] for raw in many]
  np.testing.assert_allclose(found.grads, expected, rtol=1e-6)
  # Three steps from the minimum keep it; three from the start are far from it.
  short = bilevel.implicit(inner_loss, SGD, 3)
  gradient = jax.jit(bilevel.hypergradient(short, outer_loss, has_aux=True))
  state = short.init(START, RAW)
  cold = gradient(state, RAW)
  for _ in range(60):
    state = gradient(state, RAW).state
  warm = gradient(state, RAW)
  assert warm.state.step == 3 * 61
  np.testing.assert_allclose(warm.grads, _closed(RAW)[1], rtol=1e-6)
  bilevel.check(warm, tolerance=1e-6)
  with pytest.raises(ValueError, match="has not converged: its gradient .*nor"):
    bilevel.check(cold)


def _singular(linear_solver, target):
  """A loss without curvature in the second direction, and its gradient."""

  def flat_loss(params, outer, step):
    del step
    return 0.5 * (params[0] - outer) ** 2

  solver = bilevel.implicit(flat_loss, optax.sgd(0.5), 60, linear_solver)
  gradient = bilevel.hypergradient(solver, lambda params, _: params @ target)
  return jax.jit(gradient)(solver.init(np.ones(2), 3.0), 3.0)


@pytest.mark.parametrize(
  "linear_solver", slow_but(("direct",), ("direct", "conjugate_gradients"))
)
def test_singular_system_is_an_error_and_no_nan(linear_solver):
  linear_solver = getattr(bilevel, linear_solver)()
  found = _singular(linear_solver, np.array([0.0, 2.0]))
  assert found.grads == 0
  with pytest.raises(ValueError, match="residual is 1, above linear_tolerance"):
    bilevel.check(found)
  # A right-hand side with a solution has the right gradient.
  found = _singular(linear_solver, np.array([2.0, 0.0]))
  np.testing.assert_allclose(found.grads, 2.0)
  bilevel.check(found)


@pytest.mark.slow
def test_check_inside_of_a_compiled_loop_is_an_error_of_checkify():
  """The same messages as outside, of the first outer step that fails."""
  solver = SOLVERS["minimum"]
  gradient = bilevel.hypergradient(solver, outer_loss, has_aux=True)
  state = solver.init(START, RAW)

  def descend(raw, tolerance):
    def step(raw, _):
      found = gradient(state, raw)
      bilevel.check(found, linear_tolerance=tolerance)
      return raw - 0.1 * found.grads, None

    return jax.lax.scan(step, raw, length=3)[0]

  def compiled(tolerance):
    return checkify.checkify(jax.jit(lambda raw: descend(raw, tolerance)))(RAW)

  error, after = compiled(1e-6)
  error.throw()
  assert np.isfinite(after).all()
  error, after = compiled(-1.0)
  with pytest.raises(ValueError, match="not solved: .*linear_tolerance=-1"):
    error.throw()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CG", "Cholesky", "SVD"])
def test_solvers_of_lineax_are_linear_solvers(name):
  """As docs/bilevel.md does it."""
  lineax = pytest.importorskip("lineax")
  chosen = lineax.CG(1e-9, 0) if name == "CG" else getattr(lineax, name)()

  def linear_solver(product, b):
    tags = lineax.symmetric_tag, lineax.positive_semidefinite_tag
    structure = jax.eval_shape(lambda: b)
    operator = lineax.FunctionLinearOperator(product, structure, tags)
    return lineax.linear_solve(operator, b, chosen, throw=False).value

  solver = bilevel.implicit_minimum(inner_loss, _minimum, linear_solver)
  gradient = bilevel.hypergradient(solver, outer_loss, has_aux=True)
  found = jax.jit(gradient)(solver.init(START, RAW), RAW)
  np.testing.assert_allclose(found.grads, _closed(RAW)[1], rtol=1e-9)
  bilevel.check(found, linear_tolerance=1e-8)


@pytest.mark.slow
def test_series_that_diverges_is_an_error():
  solver = bilevel.implicit(inner_loss, SGD, STEPS, bilevel.neumann(5000, 3.0))
  gradient = bilevel.hypergradient(solver, outer_loss, has_aux=True)
  found = jax.jit(gradient)(solver.init(START, RAW), RAW)
  assert np.isfinite(found.grads).all()
  with pytest.raises(ValueError, match="linear system is not solved"):
    bilevel.check(found)


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="num_steps=-1: must be 0 or more"):
    bilevel.unrolled(inner_loss, SGD, -1)
  with pytest.raises(ValueError, match="last=4: must be at most num_steps=3"):
    bilevel.truncated(inner_loss, SGD, 3, 4)
  with pytest.raises(ValueError, match="memory='all': must be one of"):
    bilevel.unrolled(inner_loss, SGD, 3, memory="all")
  with pytest.raises(ValueError, match="step_size=0: must be above 0"):
    bilevel.neumann(3, 0)
  with pytest.raises(ValueError, match="high=1: must be above 2"):
    bilevel.interval(2, 1)
  with pytest.raises(ValueError, match="max_size=2: .* 3 unknowns"):
    bilevel.direct(max_size=2)(lambda x: x, START)
  with pytest.raises(ValueError, match="max_size=0: must be 1 or more"):
    bilevel.direct(max_size=0)
  with pytest.raises(ValueError, match="num_steps=2.5: must be an integer"):
    bilevel.unrolled(inner_loss, SGD, 2.5)
  # A check inside of a compiled program must be seen by checkify.
  found = _singular(bilevel.direct(), np.ones(2))
  with pytest.raises(ValueError, match="checkify.check which was not funct"):
    jax.jit(lambda found: bilevel.check(found))(found)


@pytest.mark.parametrize("of", [bilevel.forward, bilevel.implicit])
def test_losses_states_and_parameters_that_cannot_be_are_named(of):
  solver = of(inner_loss, SGD, 1)

  def refused(message, outer_loss=outer_loss, state=None, raw=RAW, **options):
    gradient = bilevel.hypergradient(solver, outer_loss, **options)
    state = solver.init(START, RAW) if state is None else state
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(gradient, state, raw)

  refused(r"outer_loss: returned the shape \(3,\); must be", lambda p, raw: p)
  refused(r"outer_loss: returned the shape \(\(\), \(\)\); must be a scalar")
  refused("must return .scalar, aux. with", lambda p, raw: p[0], has_aux=True)
  refused("state is .*: must be `solver.init", state=START, has_aux=True)
  refused("outer is int..; must be real", raw=np.arange(3), has_aux=True)
  for optimizer in (None, lambda raw: 0.1):
    with pytest.raises(ValueError, match="must be an optimizer of optax"):
      of(inner_loss, optimizer, 1).init(START, RAW)
  with pytest.raises(ValueError, match="no floating point number to train"):
    solver.init(np.arange(3), RAW)


@pytest.mark.parametrize(
  "constraint, outside",
  [
    (bilevel.positive(), np.array([0.0, 1.0])),
    (bilevel.interval(-1, 3), np.array([0.0, 3.0])),
    (bilevel.simplex(), np.array([1.1, -0.1])),
  ],
)
def test_numbers_outside_of_a_set_are_named(constraint, outside):
  with pytest.raises(ValueError, match="x=.*: must be above"):
    constraint.to_raw(outside)


@pytest.mark.parametrize(
  "constraint, inside",
  [
    (bilevel.positive(), np.array([0.1, 30.0])),
    (bilevel.interval(-1, 3), np.array([-0.9, 2.5])),
    (bilevel.simplex(), np.array([0.1, 0.2, 0.7])),
  ],
)
def test_constraints_are_maps_onto_their_sets(constraint, inside):
  raw = constraint.to_raw(inside)
  np.testing.assert_allclose(constraint.of_raw(raw), inside, rtol=1e-12)


@pytest.mark.parametrize(
  "x", [[2.0, 2.0], [0.2, 0.3], [[0.5, 0.5], [0.5, 0.6]]]
)
def test_numbers_off_the_simplex_are_named(x):
  with pytest.raises(ValueError, match="^x: its sum is .* must be 1"):
    bilevel.simplex().to_raw(jnp.array(x))


@pytest.mark.parametrize("ends", [(0, np.inf), (-np.inf, 0), (np.nan, 1)])
def test_an_interval_is_finite(ends):
  with pytest.raises(ValueError, match="^(low|high)="):
    bilevel.interval(*ends)


@pytest.mark.parametrize(
  "solver",
  [
    bilevel.unrolled(lambda p, o, s: p - o, optax.sgd(0.1), 2),
    bilevel.implicit(lambda p, o, s: p - o, optax.sgd(0.1), 2),
  ],
)
def test_an_inner_loss_that_is_no_scalar_is_named(solver):
  gradient = bilevel.hypergradient(solver, lambda p, o: p.sum())
  with pytest.raises(ValueError, match=r"^inner_loss: returned the shape \(2,"):
    gradient(solver.init(jnp.zeros(2), 1.0), 1.0)


def test_a_minimum_of_another_shape_is_not_broadcast():
  solver = bilevel.implicit_minimum(
    lambda p, o, s: jnp.square(p - o).sum(), lambda p, o: o
  )
  gradient = bilevel.hypergradient(solver, lambda p, o: p.sum())
  with pytest.raises(ValueError, match=r"^minimize: returned the shapes \(\)"):
    gradient(solver.init(jnp.zeros(2), jnp.float32(1)), jnp.float32(1))
