"""iMAML: on quadratics, where all of it is linear algebra."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import inner_loop
from metajax.learners import imaml
from metajax.losses import mean_squared_error
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
FEATURES, EXAMPLES = 3, 5
LINEAR = SimpleNamespace(
  init=lambda rng, inputs: jax.random.normal(rng, (inputs.shape[1], 1)),
  apply=lambda weights, inputs: inputs @ weights,
)
STRENGTH, RATE = 1.5, 0.1


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _batch(seed):
  draw = np.random.default_rng(seed).normal
  return Batch(draw(size=(EXAMPLES, FEATURES)), draw(size=(EXAMPLES, 1)))


SUPPORT, QUERY = _batch(0), _batch(1)
THETA = np.array([[0.5], [-1.0], [2.0]])


def _learner(num_steps, **options):
  return imaml(
    LINEAR,
    mean_squared_error,
    optax.sgd(RATE),
    num_steps,
    strength=STRENGTH,
    **options,
  )


def _meta_grad(num_steps, **options):
  one = jax.tree.map(lambda x: jnp.asarray(x)[None], Episode(SUPPORT, QUERY))
  return jax.jit(_learner(num_steps, **options).meta_grad)(THETA, one, RNG)


def _solution():
  """Hessian, and the minimum of the proximal loss."""
  x, y, _ = SUPPORT
  hessian = 2 * x.T @ x / EXAMPLES
  slope = 2 * x.T @ y / EXAMPLES
  a = hessian + STRENGTH * np.eye(FEATURES)
  return hessian, np.linalg.solve(a, slope + STRENGTH * THETA)


def _query_gradient(phi):
  x, y, _ = QUERY
  return 2 * x.T @ (x @ phi - y) / EXAMPLES


def test_adaptation_converges_to_the_proximal_minimum():
  adapted = jax.jit(_learner(300).adapt)(THETA, SUPPORT, RNG)
  np.testing.assert_allclose(adapted, _solution()[1], rtol=1e-9)


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_meta_gradient_is_the_solution_of_its_equations(damping):
  hessian, phi = _solution()
  system = (1 + damping) * np.eye(FEATURES) + hessian / STRENGTH
  expected = np.linalg.solve(system, _query_gradient(phi))
  # As many steps as there are dimensions end conjugate gradients.
  found, metrics = _meta_grad(300, cg_steps=FEATURES, damping=damping)
  np.testing.assert_allclose(found, expected, rtol=1e-7)
  error = np.square(QUERY.inputs @ phi - QUERY.targets).mean()
  np.testing.assert_allclose(metrics["loss"], error, rtol=1e-7)


@pytest.mark.slow
def test_maml_through_the_proximal_loop_tends_to_it_as_both_converge():
  @functools.partial(jax.jit, static_argnums=0)
  def unrolled(num_steps):
    def outer(theta):
      def inner(phi, step):
        del step
        loss = mean_squared_error(SUPPORT.inputs @ phi, SUPPORT.targets)
        return loss + STRENGTH / 2 * jnp.square(phi - theta).sum()

      phi = inner_loop.minimize(inner, theta, optax.sgd(RATE), num_steps).params
      return mean_squared_error(QUERY.inputs @ phi, QUERY.targets)

    return jax.grad(outer)(THETA)

  gaps = []
  for num_steps in (3, 20, 200):
    found, _ = _meta_grad(num_steps, cg_steps=FEATURES)
    gaps.append(np.abs(found - unrolled(num_steps)).max())
  assert gaps[0] > 1e-2
  assert gaps[1] < gaps[0] / 5
  assert gaps[2] < 1e-9


def test_gradient_of_a_loss_that_is_not_quadratic_is_that_of_differences():
  """Of the query's loss after an inner loop that has converged."""

  def logistic(predictions, targets):
    return jnp.logaddexp(0.0, -jnp.sign(targets) * predictions).mean()

  learner = imaml(
    LINEAR,
    logistic,
    optax.sgd(0.3),
    100,
    strength=STRENGTH,
    cg_steps=FEATURES,
  )
  meta_grad = jax.jit(learner.meta_grad)
  one = jax.tree.map(lambda x: jnp.asarray(x)[None], Episode(SUPPORT, QUERY))
  found, _ = meta_grad(THETA, one, RNG)
  for i in range(FEATURES):
    step = np.zeros_like(THETA)
    step[i] = 1e-5
    after, before = (
      meta_grad(theta, one, RNG)[1]["loss"]
      for theta in (THETA + step, THETA - step)
    )
    np.testing.assert_allclose(found[i, 0], (after - before) / 2e-5, rtol=1e-7)


def test_memory_does_not_depend_on_the_number_of_steps():
  one = jax.tree.map(lambda x: jnp.asarray(x)[None], Episode(SUPPORT, QUERY))
  few, many = (
    jax.jit(_learner(steps).meta_grad)
    .lower(THETA, one, RNG)
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
    for steps in (10, 1000)
  )
  # The indices of the steps are stored, 4 bytes each, and no parameters.
  assert many - few <= 8 * (1000 - 10)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"strength": 0.0}, "strength=0.0: must be above 0"),
    ({"damping": -0.1}, "damping=-0.1: must be 0 or more"),
    ({"num_steps": -1}, "num_steps=-1: must be 0 or more"),
    ({"cg_steps": -1}, "cg_steps=-1: must be 0 or more"),
  ],
)
def test_numbers_that_cannot_be_are_named(options, message):
  options = {"num_steps": 1} | options
  with pytest.raises(ValueError, match=message):
    imaml(LINEAR, mean_squared_error, optax.sgd(RATE), **options)
