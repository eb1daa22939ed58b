"""Groups of units found from a network itself, and what they leave alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.aggregation import (
  align_stack,
  chain_axes,
  match_units,
  permute_units,
  stack_models,
  unit_axes,
)
from metajax.models.conv import conv4
from metajax.models.transformer import Transformer

WIDTH, INNER = 6, 10


class Residual(nn.Module):
  """A stem, two blocks with skips, the second of another width; a head."""

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(nn.BatchNorm, use_running_average=True)
    conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
    x = nn.relu(norm(name="norm_stem")(conv(WIDTH, name="stem")(x)))
    for block, width in (("a", WIDTH), ("b", 2 * WIDTH)):
      y = nn.relu(norm(name=f"{block}_norm1")(conv(5, name=f"{block}_1")(x)))
      y = norm(name=f"{block}_norm2")(conv(width, name=f"{block}_2")(y))
      if width != x.shape[-1]:
        x = nn.Conv(width, (1, 1), name=f"{block}_skip")(x)
      x = nn.relu(x + y)
    return nn.Dense(3, name="head")(nn.avg_pool(x, (4, 4)).mean((1, 2)))


class Block(nn.Module):
  """A transformer block as flax has it, its kernels `[in, heads, width]`."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(8, name="embed")(x)
    y = nn.LayerNorm(name="norm1")(x)
    x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y)
    y = nn.Dense(INNER, name="mlp1")(nn.LayerNorm(name="norm2")(x))
    x = x + nn.Dense(8, name="mlp2")(nn.gelu(y))
    return nn.Dense(3, name="head")(x)


class Nested(nn.Module):
  """Modules in modules, whose names repeat; a dense layer over an image."""

  @nn.compact
  def __call__(self, x):
    class Encoder(nn.Module):
      @nn.compact
      def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.tanh(nn.Dense(7)(x.reshape(len(x), -1)))

    return nn.Dense(3)(Encoder()(x))


class Depthwise(nn.Module):
  """One filter a channel, and normalisation over two groups of channels."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (1, 1))(x)
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(3)(nn.GroupNorm(2)(x).reshape(len(x), -1))


class Recurrent(nn.Module):
  """A cell of flax over time; its state is on both axes of its kernels."""

  cell: type

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.RNN(self.cell(6))(x))


def fused_lstm(params, inputs):
  """All gates from one product, which is cut into four."""

  def step(carry, x):
    h, c = carry
    i, f, g, o = jnp.split(x @ params["w"] + h @ params["u"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h

  zeros = jnp.zeros((inputs.shape[0], 5))
  (h, _), _ = jax.lax.scan(step, (zeros, zeros), inputs.swapaxes(0, 1))
  return h @ params["v"]


class Functional:
  def __init__(self, apply, shapes):
    self.apply, self.shapes = apply, shapes

  def init(self, rng, inputs):
    return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in self.shapes}


IMAGE, SEQUENCE = (2, 8, 8, 2), (2, 5, 4)
LSTM = (("w", (4, 20)), ("u", (5, 20)), ("v", (5, 3)))
# name -> (model, inputs' shape, sizes of the groups)
NETWORKS = {
  "residual": (Residual(), IMAGE, [5, 5, WIDTH, 2 * WIDTH]),
  # The stream; units of queries and keys, of values, heads; the hidden layer.
  "transformer block": (Block(), SEQUENCE, [2, 4, 4, 8, INNER]),
  # Cut out of one kernel: queries, keys and values share their units.
  "transformer": (Transformer(11, 8, 2, 2), None, [2, 4, 8, 32]),
  "remat": (Transformer(11, 8, 2, 2, remat=True), None, [2, 4, 8, 32]),
  "nested": (Nested(), IMAGE, [4, 7]),
  # Four channels in each of two groups.
  "depthwise": (Depthwise(), IMAGE, [2, 4]),
  "simple cell": (Recurrent(nn.SimpleCell), SEQUENCE, [6]),
  "gru": (Recurrent(nn.GRUCell), SEQUENCE, [6]),
  "lstm": (Recurrent(nn.LSTMCell), SEQUENCE, [6]),
  "fused lstm": (Functional(fused_lstm, LSTM), SEQUENCE, [5]),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def _inputs(shape):
  draw = np.random.default_rng(1)
  if shape is None:
    return jnp.asarray(draw.integers(0, 11, (2, 5)))
  return jnp.asarray(draw.normal(size=shape), jnp.float32)


@functools.cache
def _network(name):
  model, shape, _ = NETWORKS[name]
  inputs = _inputs(shape)
  shapes = jax.eval_shape(
    lambda key: model.init(key, inputs), jax.random.key(0)
  )
  apply = jax.jit(lambda params: model.apply(params, inputs))
  return apply, shapes, unit_axes(model.apply, shapes, inputs)


def _random(shapes, seed):
  draw = np.random.default_rng(seed)

  def leaf(x):
    if len(x.shape) == 1:
      return draw.uniform(0.2, 1.5, size=x.shape).astype(x.dtype)
    scale = np.sqrt(np.prod(x.shape[:-1]) / 2)
    return (draw.normal(size=x.shape) / scale).astype(x.dtype)

  return jax.tree.map(leaf, shapes)


def _sizes(shapes, axes):
  """The number of units of each group, read off the axes."""
  sizes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    name = jax.tree_util.keystr(path)
    for axis, size in zip(axes[name], leaf.shape, strict=True):
      if isinstance(axis, str):
        sizes[axis] = size
      for group, units in axis if isinstance(axis, tuple) else ():
        if group:
          sizes[group] = units
  return sizes


def _random_orders(shapes, axes, seed):
  """Permutations of all groups, of which none is the identity."""
  draw = np.random.default_rng(seed)
  orders = {}
  for group, units in _sizes(shapes, axes).items():
    moved = draw.permutation(units)
    orders[group] = (
      np.roll(moved, 1) if np.array_equal(moved, range(units)) else moved
    )
  return orders


@every_network
def test_groups_are_those_of_the_network(name):
  _, shapes, axes = _network(name)
  assert sorted(_sizes(shapes, axes).values()) == NETWORKS[name][2]


@every_network
def test_permuting_what_was_found_leaves_the_function(name):
  apply, shapes, axes = _network(name)
  params = _random(shapes, 0)
  expected = apply(params)
  assert np.ptp(expected) > 0.1
  orders = _random_orders(shapes, axes, 2)
  for chosen in [orders, *({g: p} for g, p in orders.items())]:
    moved = permute_units(params, chosen, axes)
    same = jax.tree.map(np.array_equal, moved, params)
    assert not all(jax.tree.leaves(same))
    np.testing.assert_allclose(apply(moved), expected, rtol=1e-3, atol=1e-5)


@every_network
def test_planted_permutations_are_found_again(name):
  _, shapes, axes = _network(name)
  params = _random(shapes, 0)
  orders = _random_orders(shapes, axes, 3)
  moved = permute_units(params, orders, axes)
  best = max(
    (match_units(params, moved, axes, seed=seed) for seed in range(5)),
    key=lambda order: _product(params, permute_units(moved, order, axes)),
  )
  found = permute_units(moved, best, axes)
  assert jax.tree.all(jax.tree.map(np.array_equal, found, params))


def _product(one, other):
  return sum(
    np.vdot(np.float64(a), np.float64(b))
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)
  )


def test_chains_are_found_as_they_are_described():
  model, inputs = conv4(3, filters=4, num_blocks=2, strided=False), IMAGE
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(inputs))
  found = unit_axes(model.apply, params, jnp.zeros(inputs))
  layers = [["Conv_0", "BatchNorm_0"], ["Conv_1", "BatchNorm_1"], ["Dense_0"]]
  described = chain_axes(params, layers)
  draw = np.random.default_rng(0)
  one = {layer: draw.permutation(4) for layer in ("Conv_0", "Conv_1")}
  of = {f"['params']['BatchNorm_{i}']['bias'] 0": f"Conv_{i}" for i in (0, 1)}
  other = {group: one[of[group]] for group in _sizes(params, found)}
  params = _random(params, 0)
  moved = permute_units(params, one, described)
  again = permute_units(params, other, found)
  assert jax.tree.all(jax.tree.map(np.array_equal, moved, again))


@pytest.mark.parametrize(
  "fn",
  [
    lambda h: jnp.stack([h, 2 * h]).sum(0),
    lambda h: jnp.stack([h, 2 * h], 2) @ jnp.array([1.0, 3.0]),
    lambda h: sum(jnp.unstack(jnp.stack([h, h, h * h], 1), axis=1)),
    lambda h: jnp.tile(h, (3, 1)).reshape(3, 2, 6).sum(0),
    lambda h: jnp.tile(h, (1, 2)).reshape(2, 2, 6).sum(1),
  ],
)
def test_operations_that_know_no_order_keep_none(fn):
  def apply(params, x):
    return fn(jnp.tanh(x @ params["w"])) @ params["v"]

  params = {"w": jnp.ones((4, 6)), "v": jnp.ones((6, 3))}
  axes = unit_axes(apply, params, jnp.ones((2, 4)))
  assert axes["['w']"][1] == axes["['v']"][0] is not None
  params = _random(params, 0)
  order = {axes["['w']"][1]: np.random.default_rng(0).permutation(6)}
  x = _inputs((2, 4))
  np.testing.assert_allclose(
    apply(permute_units(params, order, axes), x), apply(params, x), rtol=1e-5
  )


def test_what_is_not_known_stays_in_order():
  def apply(params, x):
    hidden = jax.nn.relu(x @ params["w"])
    # The order of units counts.
    return jnp.cumsum(hidden, axis=-1) @ params["v"]

  params = {"w": jnp.ones((4, 6)), "v": jnp.ones((6, 3))}
  axes = unit_axes(apply, params, jnp.ones((2, 4)))
  assert axes == {"['v']": (None, None), "['w']": (None, None)}


@pytest.mark.parametrize(
  "fn",
  [
    lambda h: h[:, ::-1],
    lambda h: h[:, :4],
    lambda h: h[:, 1:],
    lambda h: h.at[:, 0].set(0.0),
    lambda h: h * jnp.arange(6),
    lambda h: jnp.sort(h, axis=1),
    lambda h: jnp.argmax(h, axis=1)[:, None] * jnp.ones(6),
    lambda h: jnp.roll(h, 1, axis=1),
    lambda h: h @ jnp.eye(6),
    lambda h: jnp.pad(h, ((0, 0), (1, 0))),
    lambda h: jnp.take(h, jnp.array([3, 1]), axis=1),
    lambda h: jax.lax.top_k(h, 2)[0],
    lambda h: h.reshape(3, 4),
    lambda h: jnp.concatenate([h, h[:, :1]], axis=1),
    lambda h: jnp.stack(jnp.unstack(h, axis=1)[::-1], 1),
    lambda h: jnp.stack([h, h[:, ::-1]]).sum(0),
    lambda h: jnp.fft.fft(h, axis=1).real,
    lambda h: jax.lax.dynamic_slice(h, (0, 2), (2, 4)),
    lambda h: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, h),
    lambda h: jax.random.normal(jax.random.key(0), h.shape) * h,
  ],
)
def test_operations_that_know_an_order_keep_it(fn):
  """Whatever is called a group can be permuted, and here nothing much can."""

  def apply(params, x):
    return fn(jnp.tanh(x @ params["w"]))

  params = _random({"w": jax.ShapeDtypeStruct((4, 6), jnp.float32)}, 0)
  x = _inputs((2, 4))

  def summed(params, x):
    return apply(params, x).sum(-1)

  for f in (apply, summed):
    axes = unit_axes(f, params, x)
    draw = np.random.default_rng(1)
    for group, units in _sizes(params, axes).items():
      moved = permute_units(params, {group: draw.permutation(units)}, axes)
      np.testing.assert_allclose(f(moved, x), f(params, x), rtol=1e-5)


def test_an_array_that_is_not_read_is_named():
  """Not even inside of a compiled function that is given it."""

  @jax.jit
  def apply(params, x):
    return x @ params["w"]

  params = {"w": jnp.ones((4, 3)), "statistics": jnp.ones(3)}
  with pytest.raises(ValueError, match=r"apply does not read \['statistics'\]"):
    unit_axes(apply, params, jnp.ones((2, 4)))


def test_statistics_of_training_have_the_order_of_their_channels():
  """They are computed and thrown away here, which is enough to know it."""
  norm = nn.BatchNorm(use_running_average=False)
  x = jnp.ones((4, 3))

  def train(variables, x):
    params = variables | {"params": variables["params"]["norm"]}
    y = norm.apply(params, x @ variables["params"]["w"], mutable=True)[0]
    return y.sum(-1)

  variables = norm.init(jax.random.key(0), x)
  variables["params"] = {"norm": variables["params"], "w": jnp.ones((3, 3))}
  axes = unit_axes(train, variables, x)
  channels = {axis for name in axes for axis in axes[name][-1:]}
  assert len(channels) == 1 and None not in channels


# --- The promise of align_stack. ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "transformer block"])
def test_aligned_models_compute_what_they_did(name):
  model, shape, _ = NETWORKS[name]
  apply, shapes, axes = _network(name)
  stack = stack_models([_random(shapes, seed) for seed in range(3)])
  aligned = align_stack(stack, axes, apply=model.apply, inputs=_inputs(shape))
  for m in range(3):
    before, after = (
      apply(jax.tree.map(lambda x, m=m: x[m], tree))
      for tree in (stack, aligned)
    )
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_wrong_axes_are_noticed_on_data():
  """The stream of a residual network, described as a chain."""

  def apply(params, x):
    x = x @ params["in"]
    return (x + jnp.tanh(x @ params["block"])) @ params["out"]

  shapes = {
    k: jax.ShapeDtypeStruct(s, jnp.float32)
    for k, s in (("in", (4, 6)), ("block", (6, 6)), ("out", (6, 3)))
  }
  stack = stack_models([_random(shapes, seed) for seed in range(3)])
  x = _inputs((2, 4))
  chain = chain_axes(shapes, [["in"], ["block"], ["out"]])
  with pytest.raises(
    ValueError, match="^axes: after the alignment the outputs"
  ):
    align_stack(stack, chain, apply=apply, inputs=x)
  align_stack(stack, unit_axes(apply, shapes, x), apply=apply, inputs=x)
