"""Statistics of batches and their derivatives, by definition; masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from metajax import variables
from metajax.forward import forward
from metajax.losses import masked_mean
from metajax.models import blocks
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.normalization import (
  NORMALIZATIONS,
  BatchNorm,
  normalize,
  statistics,
)
from metajax.models.pooling import max_pool
from metajax.types import State

RNG = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (6, 5)) * 3 + 1
MOMENTUM = 0.99  # flax's.


def _mlp():
  model = forward(MLP(2, (4,), "running"))
  params = model.init(RNG, INPUTS)
  return model, params, params["params"]["Dense_0"]


def test_running_is_the_batchs_in_training_and_its_average_in_evaluation():
  model, params, first = _mlp()
  batch = forward(MLP(2, (4,), "batch"))
  trained, new = model.train(params, INPUTS, RNG)
  np.testing.assert_allclose(
    trained, batch.apply({"params": params["params"]}, INPUTS), rtol=1e-5
  )
  hidden = np.float64(INPUTS) @ np.float64(first["kernel"])
  mean, var = 0.01 * hidden.mean(0), MOMENTUM + 0.01 * hidden.var(0)
  assert isinstance(new["batch_stats"], State)
  stats = new["batch_stats"].value["BatchNorm_0"]
  np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
  np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
  head = params["params"]["Dense_1"]
  seen = np.maximum((hidden - mean) / np.sqrt(var + 1e-5), 0)
  np.testing.assert_allclose(
    model.apply(new, INPUTS),
    seen @ np.float64(head["kernel"]) + head["bias"],
    rtol=1e-4,
    atol=1e-6,
  )


def test_padding_counts_in_no_statistic():
  model, params, _ = _mlp()
  mask = jnp.arange(6) < 4
  padded, state = model.train(params, INPUTS, RNG, mask=mask)
  plain, expected = model.train(params, INPUTS[:4], RNG)
  np.testing.assert_allclose(padded[:4], plain, rtol=1e-5, atol=1e-6)
  for found, other in zip(
    *map(jax.tree.leaves, (state, expected)), strict=True
  ):
    np.testing.assert_allclose(found, other, rtol=1e-6)


@pytest.mark.parametrize("name", ["batch", "running"])
@pytest.mark.parametrize("window", [None, (2, 2)])
@pytest.mark.parametrize("n", [0, 6])
def test_padding_alone_changes_no_statistic_and_no_weight(name, window, n):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None, train=False):
      norm = normalize(name)
      if window is not None:
        x = x.reshape(-1, 1, 5, 1) * jnp.ones((1, 2, 1, 2))
        return norm(x, mask, train, window)
      return norm(x, mask, train)

  model = forward(Net())
  params = model.init(RNG, INPUTS)
  mask = jnp.zeros(n, bool)

  def loss(params):
    outputs, new = model.train(params, INPUTS[:n], RNG, mask=mask)
    return masked_mean(jnp.square(outputs), mask), new

  weights = variables.weights(params)
  grads, new = jax.grad(
    lambda w: loss(variables.combine(w, params)), has_aux=True
  )(weights)
  for found, kept in ((grads, optax.tree.zeros_like(weights)), (new, params)):
    jax.tree.map(np.testing.assert_array_equal, found, kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_images_are_judged_alone_but_for_the_batchs_statistics(name):
  model = forward(conv4(2, filters=8, num_blocks=2, normalization=name))
  images = jax.random.normal(RNG, (3, 4, 4, 1))
  params = model.init(RNG, images)
  apply = jax.jit(model.apply)
  alone = np.concatenate([apply(params, images[i : i + 1]) for i in range(3)])
  together = apply(params, images)
  same = np.allclose(together, alone, rtol=1e-4, atol=1e-5)
  assert same == (statistics(name) != "batch")
  moved = jax.tree.leaves(jax.jit(model.train)(params, images, RNG)[1])
  pairs = zip(jax.tree.leaves(params), moved, strict=True)
  changes = any(not np.array_equal(*pair) for pair in pairs)
  assert changes == (statistics(name) == "running")


def _definition(params, x, mask=None, window=None):
  real = None if mask is None else mask[:, None, None, None]
  mean = jnp.mean(x, (0, 1, 2), where=real)
  variance = jnp.mean((x - mean) ** 2, (0, 1, 2), where=real)
  y = (x - mean) / jnp.sqrt(variance + 1e-5) * params["scale"] + params["bias"]
  return y if window is None else max_pool(y, window)


def _pixels(x):
  """One array for each pixel of windows of 2 x 2."""
  return [x[:, a::2, b::2] for a in range(2) for b in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("window", "taps"),
  [(None, None), ((2, 2), None), ((3, 2), None), ((2, 2), _pixels)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_and_its_derivatives_are_the_definitions(
  window, taps, masked, monkeypatch
):
  monkeypatch.setattr(blocks, "BLOCK_BYTES", 2_000)
  with jax.enable_x64(True):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(1.0, 2.0, (4, 6, 4 if taps else 5, 3)))
    mask = jnp.array([True, True, False, True]) if masked else None
    params = {"scale": jnp.array([1.5, -0.7, 0.3]), "bias": jnp.arange(3.0)}
    norm = BatchNorm()
    assert jax.tree.structure(norm.init(RNG, x)["params"]) == (
      jax.tree.structure(params)
    )

    def loss(of):
      def run(params, x):
        return jnp.sin(of(params, x)).sum()

      return run

    def ours(params, x):
      arguments = {"window": window, "taps": taps}
      return norm.apply({"params": params}, x, mask, **arguments)

    assert ("scan" in str(jax.make_jaxpr(ours)(params, x))) == bool(taps)

    def definition(params, x):
      return _definition(params, x, mask, window)

    def third(of):
      def along(params, x):
        gradient = jax.grad(loss(of), (0, 1))
        return jax.jvp(gradient, (params, x), (params, x**2))[1]

      def weighted(params, x):
        pairs = map(jax.tree.leaves, (along(params, x), (params, x)))
        return sum(map(jnp.vdot, *pairs))

      return jax.jit(jax.grad(weighted, (0, 1)))(params, x)

    np.testing.assert_allclose(
      ours(params, x), definition(params, x), rtol=1e-12, atol=1e-12
    )
    for found, expected in zip(
      *map(jax.tree.leaves, (third(ours), third(definition))), strict=True
    ):
      np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    check_grads(loss(ours), (params, x), order=2, modes=("fwd", "rev"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_pooling_in_a_normalisation_is_pooling_after_it(name):
  x = jax.random.normal(RNG, (3, 4, 6, 8))

  class Layer(nn.Module):
    window: tuple[int, int] | None

    @nn.compact
    def __call__(self, x):
      return normalize(name)(x, None, True, window=self.window)

  plain, pooled = Layer(None), Layer((2, 2))
  variables = plain.init(RNG, x)
  variables = jax.tree.map(lambda v: v - 1.5 * (v.ndim > 0), variables)
  mutable = list(variables)
  y, _ = plain.apply(variables, x, mutable=mutable)
  found, _ = pooled.apply(variables, x, mutable=mutable)
  np.testing.assert_allclose(found, max_pool(y), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_scale_of_zero_has_finite_derivatives():
  params = {"scale": jnp.zeros(2), "bias": jnp.ones(2)}
  x = jax.random.normal(RNG, (2, 4, 4, 2))

  def loss(params):
    y = BatchNorm().apply({"params": params}, x, window=(2, 2))
    return (y**2).sum()

  np.testing.assert_array_equal(jax.value_and_grad(loss)(params)[0], 16.0)
  for leaf in jax.tree.leaves(jax.hessian(loss)(params)):
    assert np.isfinite(leaf).all()


def test_a_mean_far_from_zero_costs_no_digits():
  x = np.float32(1e4 + np.random.default_rng(0).normal(size=(64, 8, 8, 2)))
  exact = np.float64(x)
  centred = exact - exact.mean((0, 1, 2))
  expected = centred / np.sqrt((centred**2).mean((0, 1, 2)) + 1e-5)
  y = BatchNorm().apply(
    {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, x
  )
  np.testing.assert_allclose(y, expected, atol=2e-3)


def test_pooled_normalisation_works_on_the_pooled():
  """Before, four arrays of the size of x were alive in the gradient."""
  x = jnp.zeros((8, 32, 32, 16))
  norm = BatchNorm()
  params = norm.init(RNG, x)

  def loss(params, x):
    return (norm.apply(params, x, window=(2, 2)) ** 2).sum()

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * x.nbytes


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
  ("window", "taps"), [(None, None), ((2, 2), None), ((2, 2), _pixels)]
)
def test_running_averages_and_gradients_are_those_of_flax(window, taps, train):
  draw = np.random.default_rng(0)
  x = jnp.float32(draw.normal(1.0, 2.0, (4, 6, 4, 3)))
  mask = jnp.array([True, True, False, True])
  params = {"scale": jnp.array([1.5, -0.7, 0.3]), "bias": jnp.arange(3.0)}
  averages = {"mean": jnp.arange(3.0), "var": jnp.array([0.5, 1.0, 2.0])}

  def ours(variables, x):
    return BatchNorm(running=True).apply(
      variables, x, mask, train, window, taps, mutable="batch_stats"
    )

  def flax(variables, x):
    layer = nn.BatchNorm(use_running_average=not train, use_fast_variance=False)
    where = mask[:, None, None, None]
    y, state = layer.apply(variables, x, mask=where, mutable="batch_stats")
    return (y if window is None else max_pool(y, window)), state

  def results(of):
    def loss(params, x):
      y, new = of({"params": params, "batch_stats": averages}, x)
      return jnp.sin(y).sum(), (y, new)

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

  found, expected = results(ours), results(flax)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["batch", "running"])
def test_half_precision_has_statistics_in_float32(name):
  """A sum of bfloat16 numbers loses what is small beside it."""
  x = jnp.float32(np.random.default_rng(0).normal(3.0, 1.0, (4, 6, 6, 2)))
  x = x.astype(jnp.bfloat16)
  norm = BatchNorm(running=name == "running")
  variables = jax.tree.map(jnp.ones_like, norm.init(RNG, x))
  variables["params"] = jax.tree.map(
    lambda v: v.astype(jnp.bfloat16), variables["params"]
  )
  y, new = norm.apply(variables, x, train=True, mutable="batch_stats")
  assert y.dtype == jnp.bfloat16
  exact = np.float64(x)
  mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
  np.testing.assert_allclose(
    np.float64(y), (exact - mean) / np.sqrt(var + 1e-5) + 1, atol=0.02
  )
  if name == "running":
    found = new["batch_stats"]
    np.testing.assert_allclose(found["mean"], 0.99 + 0.01 * mean, rtol=1e-6)
    np.testing.assert_allclose(found["var"], 0.99 + 0.01 * var, rtol=1e-6)


def test_running_statistics_cost_no_memory_beyond_those_of_the_batch():
  x = jnp.zeros((8, 32, 32, 16))
  temporaries = {}
  for running in (False, True):
    norm = BatchNorm(running=running)
    variables = norm.init(RNG, x)

    def loss(variables, x, norm=norm):
      y, new = norm.apply(
        variables, x, None, True, (2, 2), mutable="batch_stats"
      )
      return (y**2).sum(), new

    step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    compiled = step.lower(variables, x).compile()
    temporaries[running] = compiled.memory_analysis().temp_size_in_bytes
  assert temporaries[True] < 1.1 * temporaries[False]
