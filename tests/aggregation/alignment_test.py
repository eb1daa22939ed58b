"""Permutations of hidden units: what they keep, and whether they are found."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.aggregation import (
  align_stack,
  chain_axes,
  loss_barrier,
  match_units,
  permute_units,
  stack_models,
  weighted_average,
)
from metajax.models.conv import conv4
from metajax.models.mlp import MLP

HIDDEN, IMAGE = (8, 7, 6), (12, 8, 2)
FILTERS, BLOCKS = 4, 2
CONV_LAYERS = [
  *([f"Conv_{i}", f"BatchNorm_{i}"] for i in range(BLOCKS)),
  ["Dense_0"],
]


def _mlp_layers(norm):
  hidden = [
    [f"Dense_{i}", *([f"{norm}_{i}"] if norm else [])]
    for i in range(len(HIDDEN))
  ]
  return [*hidden, [f"Dense_{len(HIDDEN)}"]]


# name -> (model, the names of its layers, shape of an example). Two poolings
# leave 3 x 2 positions of the image, which the head reads flattened.
NETWORKS = {
  "mlp": (MLP(3, HIDDEN), _mlp_layers(None), (20,)),
  "mlp with batch norm": (
    MLP(3, HIDDEN, normalization="batch"),
    _mlp_layers("BatchNorm"),
    (20,),
  ),
  "mlp with layer norm": (
    MLP(3, HIDDEN, normalization="layer"),
    _mlp_layers("LayerNorm"),
    (20,),
  ),
  "conv4, strided": (
    conv4(3, filters=FILTERS, num_blocks=BLOCKS),
    CONV_LAYERS,
    IMAGE,
  ),
  "conv4, flattened": (
    conv4(3, filters=FILTERS, num_blocks=BLOCKS, strided=False),
    CONV_LAYERS,
    IMAGE,
  ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def _network(name):
  """Returns the compiled network, its parameters' shapes and their axes."""
  model, layers, shape = NETWORKS[name]
  inputs = jnp.asarray(
    np.random.default_rng(1).normal(size=(5, *shape)), jnp.float32
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
  apply = jax.jit(lambda params: model.apply(params, inputs))
  return apply, shapes, chain_axes(shapes, layers)


def _random_params(shapes, draw):
  """No two units are alike in any array: biases and scales move, too."""

  def leaf(x):
    if len(x.shape) == 1:  # Positive, or too many ReLUs are dead.
      return draw.uniform(0.2, 1.5, size=x.shape).astype(x.dtype)
    scale = np.sqrt(np.prod(x.shape[:-1]))
    return (draw.normal(size=x.shape) / scale).astype(x.dtype)

  return jax.tree.map(leaf, shapes)


def _random_permutations(shapes, axes, draw):
  """Of every group, from the biases or scales `[units]` alone."""
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  shape_of = {jax.tree_util.keystr(path): x.shape for path, x in leaves}
  sizes = {
    groups[-1]: shape_of[path][-1]
    for path, groups in axes.items()
    if groups[-1] is not None
  }
  return {group: draw.permutation(units) for group, units in sizes.items()}


def _product(one, other):
  leaves = zip(*map(jax.tree.leaves, (one, other)), strict=True)
  return sum(np.vdot(np.float64(a), np.float64(b)) for a, b in leaves)


def _assert_moved(found, original):
  same = jax.tree.map(np.array_equal, found, original)
  assert not all(jax.tree.leaves(same))


# --- What the axes are. ---


def test_axes_of_a_chain():
  axes = _network("conv4, flattened")[2]
  one, two = "Conv_0", "Conv_1"
  assert axes == {
    "['params']['Conv_0']['kernel']": (None, None, None, one),
    "['params']['BatchNorm_0']['scale']": (one,),
    "['params']['BatchNorm_0']['bias']": (one,),
    "['params']['Conv_1']['kernel']": (None, None, one, two),
    "['params']['BatchNorm_1']['scale']": (two,),
    "['params']['BatchNorm_1']['bias']": (two,),
    "['params']['Dense_0']['kernel']": (two, None),
    "['params']['Dense_0']['bias']": (None,),
  }


def _two_layers(inputs=2, units=3, reads=3):
  return {
    "a": {"kernel": np.ones((inputs, units)), "bias": np.ones(units)},
    "b": {"kernel": np.ones((reads, 1)), "bias": np.ones(1)},
  }


@pytest.mark.parametrize(
  "params, layers, message",
  [
    (_two_layers(), [["a"]], r"layers: \['b'\]\['bias'\] is in none of them"),
    (
      _two_layers(),
      [["a"], ["a", "b"]],
      r"layers: \['a'\]\['bias'\] is in more than one of them",
    ),
    (
      _two_layers(),
      [["a"], ["c", "d"], ["b"]],
      r"layers: no array belongs to \['c', 'd'\]",
    ),
    (
      _two_layers() | {"norm": {"scale": np.ones(4)}},
      [["a", "norm"], ["b"]],
      r"layers: \['norm'\]\['scale'\] has 4 units, but another array of its "
      "layer 3",
    ),
    (
      {"block": _two_layers(), "out": np.ones((1, 2))},
      [["block"], ["out"]],
      r"layers: no array belongs to \['block'\]",
    ),
    (
      {"outer": _two_layers()},
      [["a"], ["b"]],
      r"layers: no array belongs to \['a'\]",
    ),
    (
      _two_layers(),
      [["a", "b"]],
      r"layers: \['a'\]\['kernel'\] and \['b'\]\['kernel'\] are in one layer, "
      "which has one kernel",
    ),
    (
      _two_layers(reads=4),
      [["a"], ["b"]],
      r"layers: \['b'\]\['kernel'\] reads 4 numbers, which are no multiple of "
      "the 3 units of the layer before",
    ),
  ],
)
def test_layers_that_do_not_match_are_named(params, layers, message):
  with pytest.raises(ValueError, match=message):
    chain_axes(params, layers)


def test_nested_modules_go_by_their_whole_path():
  params = {
    "params": {
      "encoder": _two_layers(reads=3),
      "a": {"kernel": np.ones((1, 2)), "bias": np.ones(2)},
    },
    "batch_stats": {"encoder": {"a": {"mean": np.ones(3)}}},
  }
  layers = [["encoder/a"], ["encoder/b"], ["params/a"]]
  axes = chain_axes(params, layers)
  one, two = "encoder/a", "encoder/b"
  assert axes == {
    "['params']['encoder']['a']['kernel']": (None, one),
    "['params']['encoder']['a']['bias']": (one,),
    "['batch_stats']['encoder']['a']['mean']": (one,),
    "['params']['encoder']['b']['kernel']": (one, two),
    "['params']['encoder']['b']['bias']": (two,),
    "['params']['a']['kernel']": (two, None),
    "['params']['a']['bias']": (None,),
  }


def test_plain_arrays_are_layers():
  params = {"w": np.ones((2, 3)), "b": np.ones(3), "v": np.ones((3, 1))}
  assert chain_axes(params, [["w", "b"], ["v"]]) == {
    "['w']": (None, "w"),
    "['b']": ("w",),
    "['v']": ("w", None),
  }


# --- Permuting. ---


def test_unit_permutation_i_comes_ith_with_all_that_reads_it():
  params = {
    "a": {"kernel": np.arange(6).reshape(2, 3), "bias": np.array([7, 8, 9])},
    # Two positions of three channels, which run fastest.
    "b": {"kernel": np.arange(10, 16)[:, None], "bias": np.array([1])},
  }
  axes = chain_axes(params, [["a"], ["b"]])
  found = permute_units(params, {"a": np.array([2, 0, 1])}, axes)
  np.testing.assert_array_equal(found["a"]["kernel"], [[2, 0, 1], [5, 3, 4]])
  np.testing.assert_array_equal(found["a"]["bias"], [9, 7, 8])
  np.testing.assert_array_equal(
    found["b"]["kernel"][:, 0], [12, 10, 11, 15, 13, 14]
  )
  np.testing.assert_array_equal(found["b"]["bias"], [1])


@every_network
def test_permuting_hidden_units_leaves_the_function(name):
  apply, shapes, axes = _network(name)
  draw = np.random.default_rng(0)
  params = _random_params(shapes, draw)
  expected = apply(params)
  assert np.ptp(expected, axis=0).max() > 0.1  # Of different examples.
  permutations = _random_permutations(shapes, axes, draw)
  # All groups of units, and each alone.
  for chosen in [permutations, *({g: p} for g, p in permutations.items())]:
    permuted = permute_units(params, chosen, axes)
    _assert_moved(permuted, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(permuted, params)
    np.testing.assert_allclose(apply(permuted), expected, rtol=1e-4, atol=1e-5)


# --- Matching: to a local optimum, which for most draws is the best one. ---


@every_network
def test_permuted_units_are_found_again_and_the_barrier_is_gone(name):
  apply, shapes, axes = _network(name)
  draw = np.random.default_rng(0)
  params = _random_params(shapes, draw)
  target = apply(params)

  @jax.jit
  def barrier(other):
    # What the network itself computes is to be fitted: no loss at both ends.
    return loss_barrier(
      lambda p: jnp.mean((apply(p) - target) ** 2), params, other, 5
    )[0]

  order = _random_permutations(shapes, axes, draw)
  permuted = permute_units(params, order, axes)
  assert barrier(permuted) > 0.01 * np.var(target)
  aligned = permute_units(permuted, match_units(params, permuted, axes), axes)
  chex.assert_trees_all_equal(aligned, params)
  assert barrier(aligned) < 1e-10


def _hidden_layer(draw, inputs, units, outputs):
  """One hidden layer as plain arrays; the keys make up the layers."""
  return {
    "a": {
      "kernel": draw.normal(size=(inputs, units)),
      "bias": draw.normal(size=units),
    },
    "b": {
      "kernel": draw.normal(size=(units, outputs)),
      "bias": draw.normal(size=outputs),
    },
  }


def test_one_hidden_layer_is_matched_as_well_as_by_trying_all_orders():
  for seed, units in itertools.product(range(4), (1, 2, 5)):
    draw = np.random.default_rng(seed)
    one, two = (_hidden_layer(draw, 3, units, 2) for _ in range(2))
    axes = chain_axes(one, [["a"], ["b"]])
    best = max(
      (one["a"]["kernel"] * two["a"]["kernel"][:, order]).sum()
      + (one["a"]["bias"] * two["a"]["bias"][order]).sum()
      + (one["b"]["kernel"] * two["b"]["kernel"][order]).sum()
      + (one["b"]["bias"] * two["b"]["bias"]).sum()
      for order in map(list, itertools.permutations(range(units)))
    )
    found = permute_units(two, match_units(one, two, axes), axes)
    np.testing.assert_allclose(_product(one, found), best, rtol=1e-12)


@every_network
def test_matching_never_lowers_the_inner_product(name):
  _, shapes, axes = _network(name)
  for seed in range(3):
    draw = np.random.default_rng(seed)
    one, two = _random_params(shapes, draw), _random_params(shapes, draw)
    values = [_product(one, two)]
    for sweeps in (0, 1, 2, 100):
      order = match_units(one, two, axes, max_sweeps=sweeps, seed=seed)
      values.append(_product(one, permute_units(two, order, axes)))
    assert values[1] == values[0]
    assert (np.diff(values) >= 0).all()
    assert values[2] > values[0]


@every_network
def test_matching_ends_where_no_order_of_a_single_group_is_better(name):
  _, shapes, axes = _network(name)
  draw = np.random.default_rng(2)
  one, two = _random_params(shapes, draw), _random_params(shapes, draw)
  found = permute_units(two, match_units(one, two, axes), axes)
  best = _product(one, found)
  for group, units in _random_permutations(shapes, axes, draw).items():
    orders = list(itertools.permutations(range(len(units))))
    for index in draw.choice(len(orders), 24, replace=False):
      other = permute_units(found, {group: np.array(orders[index])}, axes)
      assert _product(one, other) <= best + 1e-9


def test_matching_is_the_same_for_the_same_seed():
  _, shapes, axes = _network("mlp")
  draw = np.random.default_rng(2)
  one, two = _random_params(shapes, draw), _random_params(shapes, draw)
  chex.assert_trees_all_equal(
    match_units(one, two, axes, seed=3), match_units(one, two, axes, seed=3)
  )


def test_linear_models_have_no_units_to_match():
  params = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}
  axes = chain_axes(params, [["a"]])
  assert match_units(params, params, axes) == {}
  chex.assert_trees_all_equal(permute_units(params, {}, axes), params)


# --- A group on several axes of an array. ---

RECURRENT = {"['in']": (None, "h"), "['u']": ("h", "h"), "['out']": ("h", None)}


def _recurrent(draw, units=12):
  return {
    "in": draw.normal(size=(4, units)),
    "u": draw.normal(size=(units, units)),
    "out": draw.normal(size=(units, 4)),
  }


def test_all_axes_of_a_group_are_permuted():
  params = _recurrent(np.random.default_rng(0), units=3)
  order = np.array([2, 0, 1])
  found = permute_units(params, {"h": order}, RECURRENT)
  np.testing.assert_array_equal(found["u"], params["u"][order][:, order])


def test_planted_permutations_of_recurrent_units_are_found_in_20_of_20():
  for seed in range(20):
    draw = np.random.default_rng(seed)
    params = _recurrent(draw)
    moved = permute_units(params, {"h": draw.permutation(12)}, RECURRENT)
    order = match_units(params, moved, RECURRENT)
    chex.assert_trees_all_equal(permute_units(moved, order, RECURRENT), params)


def test_recurrent_matching_never_lowers_the_inner_product():
  for seed in range(20):
    draw = np.random.default_rng(seed)
    one, two = _recurrent(draw), _recurrent(draw)
    values = []
    for sweeps in (0, 1, 2, 100):
      order = match_units(one, two, RECURRENT, max_sweeps=sweeps)
      values.append(_product(one, permute_units(two, order, RECURRENT)))
    assert values[0] == pytest.approx(_product(one, two))
    assert (np.diff(values) >= -1e-9).all()
    assert values[-1] > values[0]


@pytest.mark.parametrize(
  "axes, message",
  [
    ({"['in']": (None, "h"), "['u']": ("h", "h")}, r"\['out'\] is not desc"),
    (
      RECURRENT | {"['u']": ("h",)},
      r"\['u'\] is described by 1 axes but has 2",
    ),
  ],
)
def test_axes_that_do_not_fit_are_named(axes, message):
  params = _recurrent(np.random.default_rng(0))
  with pytest.raises(ValueError, match=message):
    match_units(params, params, axes)
  with pytest.raises(ValueError, match=message):
    permute_units(params, {"h": np.arange(12)}, axes)


# --- Stacks. ---


def _permuted_copies(name, size=4):
  _, shapes, axes = _network(name)
  draw = np.random.default_rng(1)
  params = _random_params(shapes, draw)
  copies = [
    permute_units(params, _random_permutations(shapes, axes, draw), axes)
    for _ in range(size - 1)
  ]
  return stack_models([params, *copies]), params, axes


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("name", ["mlp with batch norm", "conv4, flattened"])
def test_permuted_copies_become_equal_copies(name, rounds):
  stack, params, axes = _permuted_copies(name)
  expected = jax.tree.map(lambda x: np.broadcast_to(x, (4, *x.shape)), params)
  _assert_moved(stack, expected)
  aligned = align_stack(stack, axes, rounds=rounds)
  chex.assert_trees_all_equal(aligned, expected)


@pytest.mark.slow
def test_average_of_aligned_copies_computes_what_they_do():
  stack, params, axes = _permuted_copies("mlp")
  apply = _network("mlp")[0]
  expected = apply(params)
  average = weighted_average(align_stack(stack, axes))
  np.testing.assert_allclose(apply(average), expected, rtol=1e-5, atol=1e-5)
  # Which it does not where their units are in any order.
  difference = np.abs(apply(weighted_average(stack)) - expected).max()
  assert difference > 0.1 * np.abs(expected).max()


def _pairs(stack):
  """The sum over pairs of models of their inner products."""
  sums = jax.tree.map(lambda x: np.float64(x).sum(0), stack)
  return (_product(sums, sums) - _product(stack, stack)) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "conv4, flattened"])
def test_alignment_of_different_models_keeps_what_each_computes(name):
  apply, shapes, axes = _network(name)
  draw = np.random.default_rng(3)
  stack = stack_models([_random_params(shapes, draw) for _ in range(4)])
  outputs = [apply(jax.tree.map(lambda x, m=m: x[m], stack)) for m in range(4)]
  first, likeness = jax.tree.map(lambda x: x[0], stack), [_pairs(stack)]
  for rounds in (1, 2, 3):
    aligned = align_stack(stack, axes, rounds=rounds)
    chex.assert_trees_all_equal_shapes_and_dtypes(aligned, stack)
    for m, expected in enumerate(outputs):
      found = apply(jax.tree.map(lambda x, m=m: x[m], aligned))
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    likeness.append(_pairs(aligned))
    if rounds == 1:
      for m in range(4):
        model = jax.tree.map(lambda x, m=m: x[m], stack)
        order = match_units(first, model, axes) if m else {}
        chex.assert_trees_all_equal(
          jax.tree.map(lambda x, m=m: x[m], aligned),
          permute_units(model, order, axes),
        )
      _assert_moved(aligned, stack)
  # Models are more alike than before, and later rounds add to it.
  assert likeness[1] > likeness[0]
  assert (np.diff(likeness[1:]) >= -1e-9).all()
  assert likeness[-1] > likeness[1]


@pytest.mark.parametrize("rounds", [1, 3])
def test_single_model_stays_as_it_is(rounds):
  _, shapes, axes = _network("mlp")
  stack = stack_models([_random_params(shapes, np.random.default_rng(4))])
  chex.assert_trees_all_equal(align_stack(stack, axes, rounds=rounds), stack)


@pytest.mark.parametrize("rounds", [0, -2])
def test_rounds_below_one_are_named(rounds):
  stack, _, axes = _permuted_copies("mlp", size=2)
  with pytest.raises(ValueError, match=f"^rounds={rounds}: must be 1 or more"):
    align_stack(stack, axes, rounds=rounds)


def test_models_that_are_not_finite_are_named():
  stack, _, axes = _permuted_copies("mlp", size=2)
  stack["params"]["Dense_1"]["bias"] *= np.array([[1.0], [np.nan]])
  with pytest.raises(ValueError, match="model 1 is not finite"):
    align_stack(stack, axes)


@pytest.mark.parametrize(
  "permutations, message",
  [
    ({"h": [0, 0, 1]}, "must have each of 0 to 2 once"),
    ({"h": [1, 2, 3]}, "must have each of 0 to 2 once"),
    ({"other": [2, 0, 1]}, "other is no group of axes"),
  ],
)
def test_what_is_no_permutation_of_a_group_is_named(permutations, message):
  params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
  axes = {"['a']": (None, "h"), "['b']": ("h", None)}
  with pytest.raises(ValueError, match=f"^permutations: .*{message}"):
    permute_units(params, permutations, axes)
