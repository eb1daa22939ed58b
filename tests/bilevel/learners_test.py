"""Meta-gradients of learners are hypergradients.

The learners have their own code, see docs/bilevel.md. Here each is written as a
bilevel problem, and has the same gradient. The inner parameters of MAML's
relatives are the way from the initialisation, which is the outer parameter.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import bilevel
from metajax.distillation import datasets
from metajax.distillation.losses import softened_kl
from metajax.distillation.synthetic import synthetic_set
from metajax.learned_optimizers import learned_sgd
from metajax.learners import bmg, imaml, maml, maml_plus_plus
from metajax.losses import cross_entropy
from metajax.types import Batch, Episode

pytestmark = pytest.mark.slow
EXAMPLES, FEATURES, CLASSES, STEPS, RATE = 8, 3, 2, 4, 0.3
SGD = optax.sgd(RATE)


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _apply(params, inputs):
  return jnp.tanh(inputs @ params["w"]) @ params["v"]


def _init(rng, inputs):
  keys = jax.random.split(rng)
  shapes = {"w": (inputs.shape[1], 3), "v": (3, CLASSES)}
  return {
    name: jax.random.normal(key, shape, float)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


MODEL = SimpleNamespace(init=_init, apply=_apply)
START = {
  "w": np.random.default_rng(1).normal(size=(FEATURES, 3)),
  "v": np.random.default_rng(2).normal(size=(3, CLASSES)),
}
ZEROS = jax.tree.map(np.zeros_like, START)
RNG = jax.random.key(0)


def _batch(seed):
  inputs = np.random.default_rng(seed).normal(size=(EXAMPLES, FEATURES))
  return Batch(inputs, np.arange(EXAMPLES) % CLASSES)


SUPPORT, QUERY = _batch(3), _batch(4)


def _loss(params, batch):
  return cross_entropy(_apply(params, batch.inputs), batch.targets)


def _sum(x, y):
  return jax.tree.map(jnp.add, x, y)


def _meta_grad(learner, params=START):
  one = jax.tree.map(lambda x: jnp.asarray(x)[None], Episode(SUPPORT, QUERY))
  return jax.jit(learner.meta_grad)(params, one, RNG)[0]


def _hypergradient(solver, outer_loss, outer=START, params=ZEROS):
  gradient = bilevel.hypergradient(solver, outer_loss)
  return jax.jit(gradient)(solver.init(params, outer), outer).grads


def _same(found, expected, tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-13),
    found,
    expected,
  )


def _support_loss(way, start, step):
  del step
  return _loss(_sum(start, way), SUPPORT)


UNROLLED = bilevel.unrolled(_support_loss, SGD, STEPS)


def test_maml_is_unrolled():
  found = _hypergradient(
    UNROLLED, lambda way, start: _loss(_sum(start, way), QUERY)
  )
  learner = maml(MODEL, cross_entropy, SGD, STEPS)
  _same(found, _meta_grad(learner), 1e-12)


def test_bmg_is_unrolled_with_a_distance_to_a_constant_target():
  def distance(way, start):
    phi = _sum(start, way)
    target = jax.lax.stop_gradient(phi)
    for batch in (SUPPORT, SUPPORT, QUERY):
      grads = jax.grad(_loss)(target, batch)
      target = jax.tree.map(lambda x, g: x - RATE * g, target, grads)
    goal = jax.lax.stop_gradient(_apply(target, QUERY.inputs))
    return softened_kl(_apply(phi, QUERY.inputs), goal)

  learner = bmg(MODEL, cross_entropy, SGD, STEPS, target_steps=3)
  _same(_hypergradient(UNROLLED, distance), _meta_grad(learner), 1e-12)


def test_imaml_is_implicit_with_a_proximal_term():
  strength, steps = 2.0, 400

  def proximal(params, start, step):
    del step
    squares = jax.tree.map(lambda x, y: ((x - y) ** 2).sum(), params, start)
    return _loss(params, SUPPORT) + strength / 2 * sum(squares.values())

  solver = bilevel.implicit(proximal, SGD, steps, bilevel.direct())
  found = _hypergradient(
    solver, lambda params, _: _loss(params, QUERY), params=START
  )
  learner = imaml(
    MODEL, cross_entropy, SGD, steps, strength=strength, cg_steps=30
  )
  # Conjugate gradients stop at a relative residual of 1e-5.
  _same(found, _meta_grad(learner), 1e-4)


def test_step_sizes_of_maml_plus_plus_are_a_learned_sgd():
  """Of each array and step. Its theta is the logarithm of the step size."""
  learner = maml_plus_plus(
    MODEL, cross_entropy, SGD, STEPS, step_normalization=False
  )
  rates = jax.tree.map(lambda x: np.array([1.0, 0.5, 2.0, 1.5]), START)
  expected = _meta_grad(learner, {"params": START, "rates": rates})["rates"]
  learned = learned_sgd(START, RATE, times=range(STEPS))
  logarithms = jax.tree.map(lambda r: np.log(RATE * r), rates)
  found = _hypergradient(
    bilevel.unrolled(
      lambda params, theta, step: _loss(params, SUPPORT),
      learned.optimizer,
      STEPS,
    ),
    lambda params, theta: _loss(params, QUERY),
    {"log_step_size": logarithms},
    START,
  )["log_step_size"]
  found = jax.tree.map(lambda g, r: g / r, found, rates)
  _same(found, expected, 1e-12)


def test_distilled_data_are_outer_parameters():
  start = synthetic_set(jnp.asarray(SUPPORT.inputs[:4]), CLASSES)
  start = jax.tree.map(lambda x: x.astype(float), start)
  objective = datasets.unrolled(MODEL, STEPS)
  expected = jax.jit(jax.grad(objective))(start, QUERY, RNG)

  def inner_loss(params, data, step):
    del step
    logits = _apply(params, data.inputs)
    return optax.softmax_cross_entropy(logits, data.targets).mean()

  solver = bilevel.unrolled(
    inner_loss, lambda data: optax.sgd(jnp.exp(data.log_step_size)), STEPS
  )
  found = _hypergradient(
    solver,
    lambda params, data: _loss(params, QUERY),
    start,
    _init(RNG, QUERY.inputs),
  )
  _same(found, expected, 1e-12)
