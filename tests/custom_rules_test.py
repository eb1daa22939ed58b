"""Rules that need not be derivatives: found, and differentiated as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.custom_derivatives import linear_call
from jax.experimental.ode import odeint

from metajax import custom_rules, inner_loop

MATRIX = jnp.asarray([[0.6, -0.4, 0.2], [0.1, 0.5, -0.7], [0.3, 0.8, 0.4]])
START = np.array([0.3, -0.4, 0.7])


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@jax.custom_vjp
def reversal(x):
  return x


reversal.defvjp(lambda x: (x, None), lambda _, g: (-0.7 * g,))


@jax.custom_vjp
def clipped(x):
  return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_vjp
def own_call(x):
  return jnp.sin(x)


own_call.defvjp(lambda x: (own_call(x), x), lambda x, g: (jnp.cos(x) * g,))


@jax.custom_gradient
def halved(x):
  return x, lambda g: g / 2


@jax.custom_jvp
def surrogate(x, y):
  return x * y


@surrogate.defjvp
def _(primals, tangents):
  (x, y), (dx, dy) = primals, tangents
  return x * y, y**2 * dx + jnp.sin(x) * dy


# A function of JAX's that was given another rule.
shifted_sin = jax.custom_jvp(jnp.sin)
shifted_sin.defjvps(lambda t, ans, x: jnp.cos(x + 0.3) * t)


def _deep(rule):
  return lambda p: jnp.sum(jnp.tanh(MATRIX @ rule(jnp.sin(MATRIX @ p))) ** 2)


def _in_scan(p):
  def body(x, _):
    return jnp.sin(MATRIX @ reversal(x)), None

  return jax.lax.scan(body, p, None, length=2)[0].sum()


def _in_cond(p):
  return jax.lax.cond(
    p[0] > 0, lambda x: _deep(reversal)(x), lambda x: x.sum(), p
  )


def _ode(p):
  times = jnp.linspace(0.0, 1.0, 3)
  return odeint(lambda y, t, a: MATRIX @ y - a * y, p, times, p**2)[-1].sum()


def _conjugate_gradients(p):
  def product(v):
    return MATRIX.T @ (MATRIX @ v) + v * p**2

  return jnp.sum(jax.scipy.sparse.linalg.cg(product, p, maxiter=2)[0] ** 2)


def _root(p):
  def solve(f, x):
    return jax.lax.fori_loop(0, 3, lambda _, x: x - f(x) / (2 * x), x)

  def of_one(y):
    return jax.lax.custom_root(
      lambda x: x**2 - y, 1.0, solve, lambda g, y: y / g(1.0)
    )

  return jax.vmap(of_one)(1 + (MATRIX @ p) ** 2).sum()


def _linear_call(p):
  doubled = linear_call(lambda _, x: 2 * x, lambda _, g: 3 * g, (), MATRIX @ p)
  return jnp.sum(jnp.sin(doubled) ** 2)


# Name -> the loss, and the kind of the rule.
LOSSES = {
  "reversal": (_deep(reversal), "custom_vjp reversal"),
  "clipped": (_deep(clipped), "custom_vjp clipped"),
  "own_call": (_deep(own_call), "custom_vjp own_call"),
  "custom_gradient": (_deep(halved), "custom_vjp"),
  "custom_jvp": (lambda p: jnp.sum(surrogate(p, MATRIX @ p)), "custom_jvp sur"),
  "jax's function": (_deep(shifted_sin), "custom_jvp sin"),
  "scan": (_in_scan, "custom_vjp reversal"),
  "cond": (_in_cond, "custom_vjp reversal"),
  "remat, jit": (
    jax.checkpoint(jax.jit(_deep(reversal))),
    "custom_vjp reversal",
  ),
  "vmap": (
    lambda p: jax.vmap(_deep(reversal))(jnp.stack([p, 2 * p])).sum(),
    "custom_vjp reversal",
  ),
  "odeint": (_ode, "custom_vjp _odeint"),
  "cg": (_conjugate_gradients, "custom_linear_solve for _cg_solve"),
  "root": (_root, "custom_jvp _custom_root"),
  "linear_call": (_linear_call, "linear_call"),
}


def _outer(loss_fn, **options):
  def outer(start):
    adapted = inner_loop.minimize(
      lambda p, k: loss_fn(p), start, optax.sgd(0.05), 3, **options
    ).params
    return jnp.sin(3 * adapted).sum()

  return outer


# Whose rules are of the inner gradients only: nothing else is differentiated by
# them, and the meta-gradient is that of finite differences.
EXACT = ["reversal", "clipped", "scan", "cond", "remat, jit", "vmap"]


@pytest.mark.parametrize("name", LOSSES)
def test_default_is_right_and_mixed_names_the_rule(name):
  loss_fn, rule = LOSSES[name]
  outer = jax.jit(jax.value_and_grad(_outer(loss_fn)))
  _, found = outer(START)
  if name in EXACT:
    along = np.array([0.4, -0.8, 0.5])
    up, down = (outer(START + h * along)[0] for h in (1e-5, -1e-5))
    np.testing.assert_allclose(found @ along, (up - down) / 2e-5, rtol=1e-7)
  else:
    expected = jax.jit(jax.grad(_outer(loss_fn, memory="plain")))(START)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
  with pytest.raises(ValueError, match=f"^memory='mixed': .*{rule}"):
    jax.eval_shape(_outer(loss_fn, memory="mixed"), START)
  # First order differentiates no gradient.
  jax.eval_shape(_outer(loss_fn, memory="mixed", first_order=True), START)


# Rules of JAX's and optax's own that are derivatives, and constants.
HARMLESS = {
  "relu": lambda p: jnp.sum(jax.nn.relu(MATRIX @ p) ** 2),
  "activations": lambda p: sum(
    f(MATRIX @ p).sum()
    for f in (jax.nn.relu6, jax.nn.silu, jax.nn.gelu, jax.nn.softplus)
  ),
  "softmax": lambda p: jax.nn.softmax(p) @ p + jax.nn.logsumexp(MATRIX @ p),
  "logaddexp": lambda p: jnp.logaddexp(p, MATRIX @ p).sum(),
  "cross_entropy": lambda p: (
    optax.softmax_cross_entropy_with_integer_labels(MATRIX @ p, 1)
    + optax.losses.kl_divergence(p, jax.nn.softmax(MATRIX @ p))
    + optax.softmax_cross_entropy(p, jax.nn.softmax(MATRIX @ p))
  ),
  "projection": lambda p: jnp.sum(
    optax.projections.projection_simplex(MATRIX @ p) ** 3
  ),
  "solve": lambda p: jnp.linalg.solve(MATRIX + jnp.diag(p), p).sum(),
  "determinant": lambda p: jnp.linalg.slogdet(MATRIX + jnp.diag(p))[1],
  "special": lambda p: jax.scipy.special.xlogy(p**2, 1 + p**2).sum(),
  "stop_gradient": lambda p: jnp.sum(
    jax.lax.stop_gradient(jnp.sin(MATRIX @ p)) * p[::-1] * p**2
  ),
  "straight_through": lambda p: jnp.sum(
    (MATRIX @ (p + jax.lax.stop_gradient(jnp.round(p) - p))) ** 2 * p
  ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_derivatives_and_constants_leave_the_default_as_it_is(name):
  loss_fn = HARMLESS[name]
  assert custom_rules.first(jax.make_jaxpr(loss_fn)(START).jaxpr) is None
  found, expected = (
    jax.jit(jax.grad(_outer(loss_fn, **options)))(START)
    for options in ({}, {"memory": "plain"})
  )
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_default_is_the_program_of_mixed_where_no_rule_is():
  def text(**options):
    grad = jax.grad(_outer(HARMLESS["relu"], **options))
    return jax.jit(grad).lower(START).as_text()

  assert text() == text(memory="mixed") != text(memory="remat")
