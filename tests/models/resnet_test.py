"""ResNet-12 against a slow one in numpy, and its DropBlock."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import recipes
from metajax.forward import forward
from metajax.models.conv import conv4
from metajax.models.dropout import DropBlock, drop_block
from metajax.models.resnet import NARROW_WIDTHS, WIDTHS, resnet12
from metajax.types import Batch, Episode, State

RNG = jax.random.key(0)
TINY = (2, 4)  # Two blocks, of which one pools 2 x 2 pixels to one.


@pytest.mark.parametrize(
  "widths, millions", [(WIDTHS, 12.4), (NARROW_WIDTHS, 8.0)]
)
def test_number_of_parameters(widths, millions):
  """Convolutions of 9 (b c + c c + c c) + b c numbers, 4 scales, 4 biases.

  The published sizes are 12.4 and 8.0 million.
  """
  images = jnp.zeros((1, 84, 84, 3))
  model = resnet12(None, filters=widths)
  params = jax.eval_shape(model.init, RNG, images)["params"]
  before = (3, *widths[:-1])
  pairs = zip(before, widths, strict=True)
  expected = sum(10 * b * c + 18 * c**2 + 8 * c for b, c in pairs)
  assert sum(x.size for x in jax.tree.leaves(params)) == expected
  assert round(expected / 1e6, 1) == millions


def _random(seed, tree):
  """Other parameters: positive scales and variances, and biases not 0."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(np.abs(draw.normal(size=x.shape)) + 0.1), tree
  )


def _numpy_conv(x, kernel):
  """Stride 1 and zeros around, by definition."""
  size, n = kernel.shape[0], len(x)
  edge = size // 2
  padded = np.pad(x, [(0, 0), (edge, edge), (edge, edge), (0, 0)])
  out = np.zeros((*x.shape[:3], kernel.shape[3]))
  for i, j in np.ndindex(*x.shape[1:3]):
    window = padded[:, i : i + size, j : j + size].reshape(n, -1)
    out[:, i, j] = window @ kernel.reshape(-1, kernel.shape[3])
  return out


def _numpy_resnet(params, statistics, x, pooled):
  def block(name, x):
    layers = params[name]

    def layer(i, x):
      y, norm = _numpy_conv(x, layers[f"Conv_{i}"]["kernel"]), f"BatchNorm_{i}"
      mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
      if statistics is not None:
        mean, var = (statistics[name][norm][k] for k in ("mean", "var"))
      y = (y - mean) / np.sqrt(var + 1e-5)
      return y * layers[norm]["scale"] + layers[norm]["bias"]

    def leaky(x):
      return np.where(x > 0, x, 0.1 * x)

    y = layer(2, leaky(layer(1, leaky(layer(0, x))))) + layer(3, x)
    n, h, w, c = leaky(y).shape
    h, w = h // 2, w // 2
    y = leaky(y)[:, : 2 * h, : 2 * w]
    return y.reshape(n, h, 2, w, 2, c).max((2, 4))

  for i in range(len(TINY)):
    x = block(f"Block_{i}", x)
  x = x.mean((1, 2)) if pooled else x.reshape(len(x), -1)
  return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.mark.parametrize(
  "normalization, pooled, size",
  [("running", True, 7), ("batch", False, 4)],
)
def test_evaluation_equals_numpy(normalization, pooled, size):
  with jax.enable_x64(True):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(3, size, size, 3))
    model = forward(
      resnet12(5, filters=TINY, normalization=normalization, pooled=pooled)
    )
    like = jax.eval_shape(model.init, RNG, jnp.asarray(x))
    params = _random(1, like)
    found = jax.jit(model.apply)(params, jnp.asarray(x))
    arrays = jax.tree.map(np.asarray, params)
    statistics = (
      arrays["batch_stats"].value if "batch_stats" in arrays else None
    )
    expected = _numpy_resnet(arrays["params"], statistics, x, pooled)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_gradient_in_training_equals_finite_differences():
  """With the squares of DropBlock, which the same key draws again."""
  with jax.enable_x64(True):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(3, 6, 6, 3)))
    model = forward(resnet12(2, filters=TINY, drop_rate=0.3, block_size=2))
    params = _random(1, jax.eval_shape(model.init, RNG, x))
    weights = params["params"]

    @jax.jit
    def loss(weights):
      y, _ = model.train({**params, "params": weights}, x, RNG)
      return jnp.sin(y).sum()

    along = jax.tree.map(
      lambda w: jnp.asarray(draw.normal(size=w.shape)), weights
    )
    grads = jax.jit(jax.grad(loss))(weights)
    slope = sum(
      jnp.vdot(a, g)
      for a, g in zip(*map(jax.tree.leaves, (along, grads)), strict=True)
    )
    step = jax.tree.map(lambda a: 1e-6 * a, along)
    ahead, behind = (
      loss(jax.tree.map(move, weights, step))
      for move in (jnp.add, jnp.subtract)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6)
    assert abs(slope) > 0.1


@pytest.mark.parametrize("size, block", [(12, 5), (12, 1), (4, 5)])
def test_drop_block_drops_whole_squares_and_keeps_the_mean(size, block):
  x = jnp.ones((64, size, size, 16))
  y = np.asarray(drop_block(RNG, x, 0.1, block))
  np.testing.assert_allclose(y.mean(), 1, rtol=1e-5)
  dropped = y == 0
  # A pixel stays if no square that covers it begins.
  b = min(size, block)
  corners = size - b + 1
  gamma = 0.1 / b**2 * size**2 / corners**2
  covers = np.convolve(np.ones(corners), np.ones(b))
  expected = 1 - (1 - gamma) ** np.outer(covers, covers)
  np.testing.assert_allclose(dropped.mean(), expected.mean(), atol=0.01)
  np.testing.assert_allclose(y[~dropped], 1 / (1 - dropped.mean()), rtol=1e-5)
  covered = np.zeros_like(dropped)
  for i, j in np.ndindex(size - b + 1, size - b + 1):
    square = (slice(None), slice(i, i + b), slice(j, j + b))
    covered[square] |= dropped[square].all((1, 2), keepdims=True)
  assert np.array_equal(covered, dropped)
  # Examples and channels are drawn by themselves.
  assert not np.array_equal(dropped[:32], dropped[32:])
  assert not np.array_equal(dropped[..., :8], dropped[..., 8:])


def test_drop_block_of_many_numbers_in_half_precision():
  """Their number is infinite in float16."""
  x = jnp.ones((64, 12, 12, 16), jnp.float16)
  y = drop_block(RNG, x, 0.1, 5)
  assert y.dtype == jnp.float16
  expected = drop_block(RNG, x.astype(jnp.float32), 0.1, 5)
  np.testing.assert_allclose(y, expected, rtol=1e-3)


@pytest.mark.parametrize("name, value", [("rate", 1.0), ("block_size", 0)])
def test_a_number_of_drop_block_out_of_range_is_named(name, value):
  numbers = {"rate": 0.1, "block_size": 2} | {name: value}
  with pytest.raises(ValueError, match=f"^{name}={value}: must be"):
    drop_block(RNG, jnp.ones((1, 4, 4, 1)), **numbers)


def test_drop_block_is_for_training_alone():
  x = jnp.ones((2, 6, 6, 3))

  def call(rate, train, **rngs):
    return DropBlock(rate, 2).apply({}, x, train, rngs=rngs)

  for same in (call(0.5, False, dropout=RNG), call(0.0, True), call(0.5, True)):
    assert same is x
  assert not np.array_equal(call(0.5, True, dropout=RNG), x)
  everything = drop_block(RNG, x[:1, :1, :1, :1], 0.999, 1)
  assert np.isfinite(everything).all()


@pytest.mark.slow
def test_a_pass_in_training_moves_the_statistics_and_draws_by_its_key():
  model = forward(resnet12(2, filters=TINY, drop_rate=0.5, block_size=2))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 1)))
  params = jax.jit(model.init)(RNG, x)
  train = jax.jit(model.train)
  one, new = train(params, x, RNG)
  assert np.array_equal(one, train(params, x, RNG)[0])
  assert not np.allclose(one, train(params, x, jax.random.key(1))[0])
  assert isinstance(new["batch_stats"], State)
  chex.assert_trees_all_equal(new["params"], params["params"])
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b),
    new["batch_stats"],
    params["batch_stats"],
  )
  assert all(jax.tree.leaves(moved))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anil", "prototypical"])
def test_learners_of_a_recipe_train_it(name):
  model = {"name": "resnet12", "filters": list(TINY), "block_size": 2}
  recipe = recipes.Recipe(
    name,
    json.loads(json.dumps(model)),
    2,
    "cross_entropy",
    {"name": "sgd", "learning_rate": 0.1},
    1,
    1,
  )
  learner = recipes.build(recipe)
  draw = np.random.default_rng(0).normal
  batch = Batch(
    jnp.asarray(draw(size=(1, 4, 6, 6, 3)), jnp.float32),
    jnp.arange(4)[None] % 2,
  )
  params = jax.jit(learner.init)(RNG, batch.inputs[0])
  grads, metrics = jax.jit(learner.meta_grad)(
    params, Episode(batch, batch), RNG
  )
  chex.assert_trees_all_equal_shapes(grads, params)
  chex.assert_tree_all_finite((grads, metrics))
  for kernel in (k for k in jax.tree.leaves(grads["params"]) if k.ndim == 4):
    assert np.any(kernel)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"filters": (64, 0)}, "filters=0: must be a multiple of 1"),
    ({"filters": (8, 12), "normalization": "group"}, "filters=12: .* of 8"),
    ({"normalization": "instance"}, "normalization='instance': must be one"),
    ({"conv_lowering": "fft"}, "conv_lowering='fft': must be one"),
    ({"drop_rate": 1.0}, "drop_rate=1.0: must be"),
    ({"block_size": 0}, "block_size=0: must be"),
  ],
)
def test_impossible_networks(arguments, message):
  with pytest.raises(ValueError, match=message):
    resnet12(5, **arguments)


def test_small_images_are_refused():
  with pytest.raises(ValueError, match="smaller than the window"):
    init = functools.partial(resnet12(2).init, RNG)
    jax.eval_shape(init, jnp.zeros((1, 15, 15, 3)))


def test_conv4_of_several_widths_is_that_of_r2d2():
  """84 x 84 miniImageNet: 384 x 10 x 10 and 512 x 5 x 5 features."""
  model = conv4(
    None,
    filters=[96, 192, 384, 512],
    strided=False,
    slope=0.1,
    joined_blocks=2,
  )
  images = jnp.zeros((1, 84, 84, 3))
  params = jax.eval_shape(model.init, RNG, images)["params"]
  features = jax.eval_shape(model.apply, {"params": params}, images)
  assert features.shape == (1, 384 * 10 * 10 + 512 * 5 * 5)
  pairs = [(3, 96), (96, 192), (192, 384), (384, 512)]
  expected = sum(9 * b * c + 2 * c for b, c in pairs)
  assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.slow
def test_joined_blocks_slope_and_dropout():
  """One block at a time makes the whole network."""
  draw = np.random.default_rng(0).normal
  x = jnp.asarray(draw(size=(3, 8, 8, 2)), jnp.float32)
  both = conv4(
    None,
    filters=(3, 5),
    num_blocks=2,
    strided=False,
    slope=0.1,
    joined_blocks=2,
  )
  params = jax.jit(both.init)(RNG, x)["params"]
  first = conv4(None, filters=3, num_blocks=1, strided=False, slope=0.1)
  second = conv4(None, filters=5, num_blocks=1, strided=False, slope=0.1)
  lower = {"params": {k: params[k] for k in ("Conv_0", "BatchNorm_0")}}
  a = jax.jit(first.apply)(lower, x)
  moved = {k: params[k[:-1] + "1"] for k in ("Conv_0", "BatchNorm_0")}
  b = jax.jit(second.apply)({"params": moved}, a.reshape(3, 4, 4, 3))
  found = jax.jit(both.apply)({"params": params}, x)
  np.testing.assert_allclose(
    found, jnp.concatenate([a, b], 1), rtol=1e-5, atol=1e-5
  )
  # Leaky: below zero there is a tenth of what a slope of 1 would give.
  linear = conv4(None, filters=3, num_blocks=1, strided=False, slope=1.0)
  whole = jax.jit(linear.apply)(lower, x)
  np.testing.assert_allclose(
    a, np.where(whole > 0, whole, 0.1 * whole), rtol=1e-5, atol=1e-6
  )
  drops = forward(
    conv4(None, filters=3, num_blocks=1, strided=False, drop_rates=(0.5,))
  )
  plain = jax.jit(drops.apply)(lower, x)
  dropped, _ = jax.jit(drops.train)(lower, x, RNG)
  kept = np.asarray(dropped) != 0
  assert 0.2 < kept[np.asarray(plain) > 0].mean() < 0.8


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"filters": (8, 8)}, r"filters=\(8, 8\): must be 4 numbers"),
    ({"drop_rates": (0.1,)}, r"drop_rates=\(0.1,\): must be 4 numbers"),
    ({"joined_blocks": 5}, "joined_blocks=5: must be"),
    ({"filters": (8, 8, 8, 0)}, "filters=0: must be a multiple"),
  ],
)
def test_impossible_blocks_of_conv4(arguments, message):
  with pytest.raises(ValueError, match=message):
    conv4(5, **arguments)
