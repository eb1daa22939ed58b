"""Rules that are no derivatives: what is found, and what is done about it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.ode import odeint

from metajax import custom_rules, inner_loop
from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.types import Batch, Episode


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@jax.custom_vjp
def reverse(x):
  return x


reverse.defvjp(lambda x: (x, None), lambda _, g: (-0.7 * g,))


@jax.custom_vjp
def clipped(x):
  return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (0.3 * jnp.tanh(g / 0.3),))


@jax.custom_vjp
def itself(x):
  """A right rule, whose forward pass calls the function."""
  return jnp.sin(x)


itself.defvjp(lambda x: (itself(x), x), lambda x, g: (g * jnp.cos(x),))


@jax.custom_jvp
def straight(x):
  return jnp.tanh(x) ** 2


straight.defjvp(lambda p, t: (straight(*p), t[0] * jnp.cos(p[0])))


@jax.custom_gradient
def doubled(x):
  return x, lambda g: 2.0 * g


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def halved(rate, x):
  return x


halved.defjvp(lambda rate, p, t: (p[0], rate * jnp.cos(p[0]) * t[0]))


def fixed_point(x):
  """The root of y = x / 2 + sin(y) / 2, by a solver that stops early."""

  def solve(fn, guess):
    return jax.lax.fori_loop(0, 2, lambda _, y: y - fn(y), guess)

  def root(x):
    return jax.lax.custom_root(
      lambda y: y - x / 2 - jnp.sin(y) / 2,
      x,
      solve,
      lambda g, y: y / g(jnp.ones_like(y)),
    )

  return jax.vmap(root)(x)


def flow(x):
  """An ordinary differential equation, from 0 to 1."""
  return odeint(lambda y, t: -jnp.sin(y) * t, x, jnp.linspace(0.0, 1.0, 3))[-1]


RULES = {
  "reverse": reverse,
  "clipped": clipped,
  "itself": itself,
  "straight": straight,
  "doubled": doubled,
  "halved": functools.partial(halved, 0.5),
  "fixed_point": fixed_point,
  "flow": flow,
}

# Programs within the loss, which have the rule in them.
WITHIN = {
  "jit": jax.jit,
  "vmap": jax.vmap,
  "remat": jax.checkpoint,
  "remat of jit": lambda rule: jax.checkpoint(jax.jit(rule)),
  "scan": lambda rule: (
    lambda x: jax.lax.scan(lambda c, _: (rule(c), None), x, None, length=2)[0]
  ),
  "cond": lambda rule: lambda x: jax.lax.cond(x.sum() > -99, rule, jnp.sin, x),
  "switch in scan": lambda rule: (
    lambda x: jax.lax.scan(
      lambda c, i: (jax.lax.switch(i, [jnp.sin, rule], c), None),
      x,
      jnp.arange(2),
    )[0]
  ),
  "map": lambda rule: lambda x: jax.lax.map(rule, x),
}

START = {"w": np.array([0.3, -0.4, 0.7]), "v": np.array([0.5, 1.1, -0.6])}


def _loss(rule, params, scale):
  hidden = rule(jnp.tanh(scale * params["w"])) * params["v"]
  return jnp.sum(jnp.sin(2 * hidden + jnp.arange(3.0)) + hidden**2)


def _outer(rule, theta, memory="auto"):
  """The loss after three steps, at a start and a scale that are learned."""
  params, scale = theta
  adapted = inner_loop.minimize(
    lambda p, k: _loss(rule, p, scale),
    params,
    optax.sgd(0.2),
    3,
    memory=memory,
  ).params
  # Without the rule, of which finite differences would know nothing.
  return _loss(jnp.sin, adapted, scale)


def _gradient(rule, memory="auto"):
  theta = jax.tree.map(jnp.asarray, (START, 1.3))
  outer = functools.partial(_outer, rule, memory=memory)
  return jax.jit(jax.grad(outer))(theta)


def _assert_is_that_of_finite_differences(rule, found):
  outer = jax.jit(functools.partial(_outer, rule))
  leaves, tree = jax.tree.flatten((START, np.array(1.3)))
  flat, unravel = jax.flatten_util.ravel_pytree(leaves)
  flat = np.asarray(flat)

  def central(step):
    steps = step * np.eye(flat.size)
    at = [
      [outer(tree.unflatten(unravel(flat + sign * e))) for e in steps]
      for sign in (1, -1)
    ]
    return (np.array(at[0]) - np.array(at[1])) / (2 * step)

  # Richardson: the error of order h^2 goes.
  expected = (4 * central(2e-4) - central(4e-4)) / 3
  found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["reverse", "clipped", "itself", "halved"])
def test_default_meta_gradient_is_that_of_finite_differences(name):
  _assert_is_that_of_finite_differences(RULES[name], _gradient(RULES[name]))


def _assert_is_that_of_plain(rule, memory="auto"):
  found, expected = _gradient(rule, memory=memory), _gradient(rule, "plain")
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    assert np.abs(b).max() > 1e-2
    np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize(
  "name", ["fixed_point", pytest.param("flow", marks=pytest.mark.slow)]
)
def test_default_meta_gradient_is_that_of_plain(name):
  _assert_is_that_of_plain(RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_default_takes_any_rule_and_mixed_names_it(name):
  jax.eval_shape(lambda: _gradient(RULES[name]))
  named = {
    "reverse": r"custom_vjp reverse at .*custom_rules_test\.py",
    "doubled": "custom_vjp",
    "fixed_point": "_custom_root",
    "flow": "_odeint",
  }.get(name, name)
  with pytest.raises(ValueError, match=rf"^memory='mixed'.*{named}"):
    jax.eval_shape(lambda: _gradient(RULES[name], "mixed"))


@pytest.mark.parametrize("within", WITHIN)
def test_rule_is_found_wherever_it_is(within):
  rule = WITHIN[within](reverse)
  with pytest.raises(ValueError, match="custom_vjp reverse"):
    jax.eval_shape(lambda: _gradient(rule, "mixed"))
  if within in ("scan", "cond"):
    _assert_is_that_of_plain(rule)


def test_rule_in_a_while_loop_is_found():
  """Its derivative needs a number of iterations that is known."""

  def loss(x):
    body = lambda carry: (carry[0] + 1, reverse(carry[1]))  # noqa: E731
    return jax.lax.while_loop(lambda c: c[0] < x.sum(), body, (0, x))[1]

  traced = jax.make_jaxpr(loss)(jnp.ones(2))
  assert "custom_vjp reverse" in custom_rules.first(traced.jaxpr)


# Functions of JAX and optax with rules of their own, which are derivatives.
DERIVATIVES = {
  "relu": jax.nn.relu,
  "relu6": jax.nn.relu6,
  "silu": jax.nn.silu,
  "softplus": jax.nn.softplus,
  "gelu": jax.nn.gelu,
  "softmax": jax.nn.softmax,
  "log_softmax": jax.nn.log_softmax,
  "logsumexp": jax.nn.logsumexp,
  "logaddexp": lambda x: jnp.logaddexp(x, 2 * x),
  "sinc": jnp.sinc,
  "logit": lambda x: jax.scipy.special.logit(jax.nn.sigmoid(x)),
  "cross entropy": lambda x: optax.softmax_cross_entropy(
    x, jnp.array([0.2, 0.3, 0.5])
  ),
  "norm": lambda x: optax.safe_norm(x, 1e-3),
  "solve": lambda x: jnp.linalg.solve(jnp.outer(x, x) + jnp.eye(3), x),
  "stop_gradient": jax.lax.stop_gradient,
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_rules_of_jax_and_optax_stay_mixed(name):
  fn = DERIVATIVES[name]
  traced = jax.make_jaxpr(jax.jit(fn))(jnp.array([0.3, -0.4, 0.7]))
  assert custom_rules.first(traced.jaxpr) is None


@pytest.mark.parametrize("name", ["gelu", "logsumexp"])
def test_mixed_is_right_with_them(name):
  _assert_is_that_of_plain(lambda x: DERIVATIVES[name](x) * x, "mixed")


class _Reversing:
  """A hidden layer whose gradient is reversed on its way down."""

  def init(self, rng, inputs):
    keys = jax.random.split(rng)
    return {
      "w": jax.random.normal(keys[0], (inputs.shape[-1], 4)),
      "v": jax.random.normal(keys[1], (4, 1)),
    }

  def apply(self, params, inputs):
    return reverse(jnp.tanh(inputs @ params["w"])) @ params["v"]


@pytest.mark.slow
def test_a_learner_with_such_a_model_has_the_right_meta_gradient():
  model = _Reversing()
  draw = np.random.default_rng(0).normal
  batches = [
    Batch(jnp.asarray(draw(size=(2, 5, 3))), jnp.asarray(draw(size=(2, 5, 1))))
    for _ in range(2)
  ]
  episodes, rng = Episode(*batches), jax.random.key(0)
  params = model.init(rng, episodes.query.inputs[0])

  def meta_gradient(**options):
    learner = maml(model, mean_squared_error, optax.sgd(0.1), 3, **options)
    return jax.jit(learner.meta_grad)(params, episodes, rng)[0]

  def by_hand(params):
    def loss(phi, batch):
      return jnp.mean((model.apply(phi, batch.inputs) - batch.targets) ** 2)

    def of_task(episode):
      phi = params
      for _ in range(3):
        grads = jax.grad(loss)(phi, episode.support)
        phi = jax.tree.map(lambda p, g: p - 0.1 * g, phi, grads)
      return loss(phi, episode.query)

    return jax.vmap(of_task)(episodes).mean()

  found, expected = meta_gradient(), jax.jit(jax.grad(by_hand))(params)
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)
  with pytest.raises(ValueError, match="custom_vjp reverse"):
    jax.eval_shape(lambda: meta_gradient(memory="mixed"))
