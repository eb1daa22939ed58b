"""What every learned optimizer can do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import bilevel, inner_loop, learned_optimizers
from tests.slow import slow_but

PARAMS = {"w": np.array([[0.5, -1.0, 2.0]]), "b": np.array([0.3, 0.0])}
STEPS = 5
BUILDERS = {
  "sgd": functools.partial(
    learned_optimizers.learned_sgd,
    PARAMS,
    0.1,
    momentum=0.5,
    times=(0, 3),
    each="element",
  ),
  "adam": functools.partial(
    learned_optimizers.learned_adam, PARAMS, 0.1, times=(0, 3)
  ),
  "mlp": functools.partial(
    learned_optimizers.mlp_optimizer,
    hidden=(3,),
    decays=(0.5,),
    step_size=0.1,
    magnitude_scale=0.1,
  ),
  "lstm": functools.partial(learned_optimizers.lstm_optimizer, units=2),
}
every = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def built(name):
  """An optimizer, and parameters of it that are nowhere 0."""
  learned = BUILDERS[name]()
  theta = learned.init(jax.random.key(0))
  draw = np.random.default_rng(0).normal
  return learned, jax.tree.map(
    lambda x: jnp.asarray(x, float) + 0.1 * draw(size=x.shape), theta
  )


def loss(params, theta, step):
  """The gradient of b[1] is 0."""
  del theta
  size = jnp.sin(params["w"]).sum() * (1 + params["b"][0] ** 2)
  return size * (1 + 0.1 * step)


@functools.cache
def final_loss(name):
  """`theta -> loss` after training, compiled."""
  learned, _ = built(name)

  def after(theta):
    optimizer = learned.optimizer(theta)
    loop = inner_loop.minimize(
      lambda params, step: loss(params, theta, step), PARAMS, optimizer, STEPS
    )
    return loss(loop.params, theta, 0)

  return after


@pytest.mark.slow
@every
def test_gradient_is_that_of_finite_differences(name):
  """Through the unrolled steps, along random directions."""
  learned, theta = built(name)
  solver = bilevel.unrolled(loss, learned.optimizer, STEPS)
  gradient = bilevel.hypergradient(solver, lambda p, theta: loss(p, theta, 0))
  found = gradient(solver.init(PARAMS, theta), theta).grads
  after = jax.jit(final_loss(name))
  flat, unravel = jax.flatten_util.ravel_pytree(theta)
  slopes = jax.flatten_util.ravel_pytree(found)[0]
  for seed in range(3):
    along = np.random.default_rng(seed).normal(size=flat.size)
    step = 1e-6 * along
    ends = after(unravel(flat + step)), after(unravel(flat - step))
    expected = (ends[0] - ends[1]) / 2e-6
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(slopes @ along, expected, rtol=1e-5)


@pytest.mark.slow
@every
def test_vmapped_and_jitted_are_one_by_one(name):
  _, theta = built(name)
  stack = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), theta)
  both = jax.jit(jax.vmap(final_loss(name)))(stack)
  second = final_loss(name)(jax.tree.map(lambda x: x[1], stack))
  np.testing.assert_allclose(both[1], second, rtol=1e-9)
  assert both[0] != both[1]


@pytest.mark.slow
@every
def test_dtypes_and_trees_stay_what_they_are(name):
  """A part that is not trained is None, as `inner_loop` has it."""
  params = {"w": jnp.ones((2, 3), jnp.bfloat16), "n": None, "s": jnp.ones(())}
  build = BUILDERS[name]
  if build.args:
    build = functools.partial(build.func, params, *build.args[1:])
  learned = build()
  optimizer = learned.optimizer(learned.init(jax.random.key(0)))
  state = optimizer.init(params)
  updates, after = optimizer.update(params, state, params)
  assert jax.tree.map(jnp.result_type, updates) == (
    jax.tree.map(jnp.result_type, params)
  )
  assert jax.eval_shape(lambda: after) == jax.eval_shape(lambda: state)


@pytest.mark.parametrize("name", slow_but(["sgd"], BUILDERS))
def test_saved_is_loaded_to_the_bit(name, tmp_path):
  learned, theta = built(name)
  path = tmp_path / "theta.safetensors"
  learned_optimizers.save(path, theta)
  found = learned_optimizers.load(path, learned)
  assert jax.tree.structure(found) == jax.tree.structure(theta)
  jax.tree.map(np.testing.assert_array_equal, found, theta)


def test_files_of_something_else_are_named(tmp_path):
  path = tmp_path / "theta.safetensors"
  learned, theta = built("adam")
  with pytest.raises(ValueError, match="theta.safetensors: cannot be read"):
    learned_optimizers.load(path, learned)
  path.write_text("no tensors")
  with pytest.raises(ValueError, match="theta.safetensors: cannot be read"):
    learned_optimizers.load(path, learned)
  learned_optimizers.save(path, theta)
  longer = learned_optimizers.learned_adam(PARAMS, 0.1, times=(0, 3, 5))
  with pytest.raises(
    ValueError, match=r"log_step_size/b has the shape \(2,\), but \(3,\) in"
  ):
    learned_optimizers.load(path, longer)


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_parameters_that_are_not_real_are_named(name):
  optimizer = BUILDERS[name]().optimizer(None)
  with pytest.raises(ValueError, match=r"\['w'\] is complex128; must be real"):
    optimizer.init({"w": np.ones(2, complex)})


def test_mlp_without_parameters_is_an_error():
  optimizer = BUILDERS["mlp"]().optimizer(None)
  with pytest.raises(ValueError, match="params=None; it reads the parameters"):
    optimizer.update(PARAMS, None)
