"""Recurrent networks against their equations, and unrolled over sequences."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.fast_weights import DeltaCell
from metajax.models.recurrent import Cell, recurrent, unroll

FEATURES, UNITS, OUTPUTS = 3, 5, 4
CELLS = get_args(Cell)


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _network(cell="gru", head="linear", units=UNITS):
  """Returns a network and parameters all of which matter: biases too."""
  network = recurrent(OUTPUTS, units=units, cell=cell, head=head)
  like = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(FEATURES))
  leaves, structure = jax.tree.flatten(like)
  leaves = [_normal(i, *leaf.shape) for i, leaf in enumerate(leaves)]
  return network, jax.tree.unflatten(structure, leaves)


def _dense(params, x):
  y = x.astype(np.float64) @ params["kernel"].astype(np.float64)
  return y + params.get("bias", 0)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _delta(weights, state, x):
  """A step of the delta rule, head by head and example by example."""
  matrices, before = (s.astype(np.float64) for s in state)
  new, found = (
    matrices.copy(),
    np.zeros((*x.shape[:-1], *matrices.shape[-3:-1])),
  )
  keys, queries, values = (
    _dense(weights[name], y).reshape(found.shape)
    for name, y in (("key", before), ("query", x), ("value", x))
  )
  keys, queries = (
    y / np.linalg.norm(y, axis=-1, keepdims=True).clip(1e-12)
    for y in (z * _sigmoid(z) for z in (keys, queries))
  )
  rates = _sigmoid(_dense(weights["rate"], x))
  for i in np.ndindex(found.shape[:-1]):
    error = values[i] - matrices[i] @ keys[i]
    new[i] += rates[i] * np.outer(error, keys[i])
    found[i] = new[i] @ queries[i]
  both = np.concatenate([found.reshape(*x.shape[:-1], -1), x], axis=-1)
  return np.maximum(_dense(weights["output"], both), 0), (new, x)


def _read(cell, params, state, inputs):
  """One step in float64 (Cho et al. 2014; Hochreiter, Schmidhuber 1997)."""
  params = params["params"]
  x = np.maximum(_dense(params["encoder"], inputs), 0)
  weights = params["core"]
  if cell == "delta":
    return _delta(weights, state, x)

  def both(gate, h):
    return _dense(weights[f"i{gate}"], x) + _dense(weights[f"h{gate}"], h)

  if cell == "gru":
    reset, update = _sigmoid(both("r", state)), _sigmoid(both("z", state))
    new = np.tanh(
      _dense(weights["in"], x) + reset * _dense(weights["hn"], state)
    )
    hidden = (1 - update) * new + update * state
    return hidden, hidden
  carry, h = state
  carry = _sigmoid(both("f", h)) * carry + (
    _sigmoid(both("i", h)) * np.tanh(both("g", h))
  )
  hidden = _sigmoid(both("o", h)) * np.tanh(carry)
  return hidden, (carry, hidden)


def _state(cell, *axes, seed=7):
  state = _normal(seed, *axes, UNITS)
  if cell == "delta":
    return _normal(seed + 1, *axes, 1, UNITS, UNITS), state
  return state if cell == "gru" else (state, _normal(seed + 1, *axes, UNITS))


def _assert_close(found, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    expected,
  )


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_is_the_cells_equations(cell):
  network, params = _network(cell)
  state, inputs = _state(cell, 6), _normal(0, 6, FEATURES)
  found = jax.jit(network.read)(params, state, inputs)
  _assert_close(found, _read(cell, params, state, inputs))


@pytest.mark.parametrize("cell", CELLS)
def test_one_who_has_read_nothing_is_in_state_zero(cell):
  network, params = _network(cell)
  start = network.start()
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, _state(cell))
  zero = jax.tree.map(np.zeros_like, _state(cell))
  inputs = _normal(0, FEATURES)
  found = jax.jit(network.read)(params, start, inputs)
  _assert_close(found, _read(cell, params, zero, inputs))


def test_heads_of_the_delta_rule_are_apart():
  network, params = _network("delta", units=70)
  weights, _ = network.start()
  assert weights.shape == (2, 35, 35)
  state = 0.1 * _normal(1, 6, 2, 35, 35), _normal(2, 6, 70)
  inputs = _normal(0, 6, FEATURES)
  # Of usual size, that float32 suffices.
  params = jax.tree.map(lambda x: x / 8, params)
  found = jax.jit(network.read)(params, state, inputs)
  _assert_close(found, _read("delta", params, state, inputs))


def test_delta_rule_binds_what_comes_to_what_came_before():
  """With rate 1, reading a key again finds its last value, exactly."""
  cell = DeltaCell(UNITS)
  keys = np.eye(UNITS, dtype=np.float32)
  identity, nothing = {"kernel": jnp.eye(UNITS)}, jnp.zeros((UNITS, 1))
  params = {
    "params": {
      "key": identity,
      "query": identity,
      "value": identity,
      "rate": {"kernel": nothing, "bias": jnp.full(1, 50.0)},
      "output": {
        "kernel": jnp.eye(2 * UNITS)[:, :UNITS],
        "bias": jnp.zeros(UNITS),
      },
    }
  }
  state = DeltaCell.start(UNITS)
  # After e0 comes e1, then something of both after e2, then e3 after e0.
  for i in (0, 1, 2):
    state, found = cell.apply(params, state, keys[i])
  np.testing.assert_allclose(found, 0, atol=1e-5)
  _, found = cell.apply(params, state, keys[0])
  np.testing.assert_allclose(found, keys[1], atol=1e-5)
  for i in (0, 3):
    state, _ = cell.apply(params, state, keys[i])
  _, found = cell.apply(params, state, keys[0])
  np.testing.assert_allclose(found, keys[3], atol=1e-5)


def test_linear_head_is_a_dense_layer():
  network, params = _network()
  hidden = _normal(0, 6, UNITS)
  expected = _dense(params["params"]["output"], hidden)
  _assert_close(network.head(params, hidden), expected)


def test_actor_critic_head_is_logits_and_a_value():
  network, params = _network(head="actor_critic")
  hidden = _normal(0, 2, 6, UNITS)
  logits, value = network.head(params, hidden)
  assert logits.shape == (2, 6, OUTPUTS)
  assert value.shape == (2, 6)
  _assert_close(logits, _dense(params["params"]["output"], hidden))
  _assert_close(value, _dense(params["params"]["value"], hidden)[..., 0])


def test_dueling_head_is_a_value_and_advantages_whose_mean_is_zero():
  network, params = _network(head="dueling")
  hidden = _normal(0, 6, UNITS)
  layers = params["params"]

  def stream(first, second):
    relu = np.maximum(_dense(layers[first], hidden), 0)
    return _dense(layers[second], relu)

  q = network.head(params, hidden)
  assert q.shape == (6, OUTPUTS)
  value = stream("hidden_value", "value")
  _assert_close(q.mean(axis=-1), value[:, 0])
  advantages = stream("hidden_output", "output")
  differences = advantages - advantages[:, :1]
  _assert_close(q - q[:, :1], differences)
  assert np.abs(differences).max() > 0.1


def test_only_differences_of_advantages_matter():
  """All raised by one constant: the values of actions stay; value's don't."""
  network, params = _network(head="dueling")
  hidden = _normal(0, 6, UNITS)

  def raised(layer):
    layers = dict(params["params"])
    layers[layer] = {**layers[layer], "bias": layers[layer]["bias"] + 3}
    return network.head({"params": layers}, hidden)

  q = network.head(params, hidden)
  _assert_close(raised("output"), q)
  _assert_close(raised("value"), q + 3)


@pytest.mark.parametrize("cell", CELLS)
def test_leading_axes_are_of_examples_apart(cell):
  """`[2, 3, features]` is read as six rows are, one by one."""
  network, params = _network(cell, "actor_critic")

  def apply(state, inputs):
    hidden, state = network.read(params, state, inputs)
    return network.head(params, hidden), state

  state, inputs = _state(cell, 2, 3), _normal(0, 2, 3, FEATURES)
  apply = jax.jit(apply)
  together = apply(state, inputs)
  for i in np.ndindex(2, 3):
    alone = apply(jax.tree.map(lambda x, i=i: x[i], state), inputs[i])
    _assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone)


@pytest.mark.parametrize("cell", CELLS)
def test_shapes_of_parameters_do_not_depend_on_leading_axes(cell):
  network = recurrent(OUTPUTS, units=UNITS, cell=cell)
  of_one, of_many = (
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))
    for shape in ((FEATURES,), (2, 3, FEATURES))
  )
  assert of_one == of_many
  assert of_one["params"]["encoder"]["kernel"].shape == (FEATURES, UNITS)


TIME, BATCH = 6, 3
# The second sequence begins a task at once, then at its fourth and fifth
# inputs; the third at its last; the first goes on with what came before.
FIRST = np.zeros((TIME, BATCH), bool)
FIRST[[0, 3, 4, 5], [1, 1, 1, 2]] = True


@pytest.fixture(scope="module", params=CELLS)
def sequences(request):
  """Returns a network, and sequences that were read by `unroll`."""
  cell = request.param
  network, params = _network(cell)
  state, inputs = _state(cell, BATCH), _normal(3, TIME, BATCH, FEATURES)
  run = jax.jit(lambda *args: unroll(network, params, *args))
  return network, params, state, inputs, run


def test_unrolling_is_a_loop_that_begins_anew_with_every_task(sequences):
  network, params, state, inputs, run = sequences
  hidden, last = run(state, inputs, FIRST)
  assert hidden.shape == (TIME, BATCH, UNITS)
  read = jax.jit(network.read)
  for i in range(BATCH):
    own = jax.tree.map(lambda x, i=i: x[i], state)
    for t in range(TIME):
      if FIRST[t, i]:
        own = network.start()
      expected, own = read(params, own, inputs[t, i])
      _assert_close(hidden[t, i], expected)
    _assert_close(jax.tree.map(lambda x, i=i: x[i], last), own)


def test_nothing_from_before_a_task_is_remembered(sequences):
  """Other inputs and another state before it change what was before only."""
  *_, state, inputs, run = sequences
  began = FIRST.copy()
  began[4] = True
  hidden, last = run(state, inputs, began)
  other_inputs = inputs.copy()
  other_inputs[:4] += 1
  other = jax.tree.map(lambda x: x + 1, state)
  other_hidden, other_last = run(other, other_inputs, began)
  np.testing.assert_array_equal(hidden[4:], other_hidden[4:])
  jax.tree.map(np.testing.assert_array_equal, last, other_last)
  # In every sequence; not at every step, where a ReLU may be 0.
  assert np.all(np.abs(hidden[:4] - other_hidden[:4]).max(axis=(0, 2)) > 1e-4)


def test_unrolling_goes_on_from_the_last_state(sequences):
  *_, state, inputs, run = sequences
  hidden, last = run(state, inputs, FIRST)
  begun, middle = run(state, inputs[:3], FIRST[:3])
  rest, end = run(middle, inputs[3:], FIRST[3:])
  _assert_close(np.concatenate([begun, rest]), hidden)
  _assert_close(end, last)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      {"cell": "rnn"},
      r"^cell='rnn': must be one of \('gru', .*'delta'\)",
    ),
    (
      {"head": "softmax"},
      r"^head='softmax': .* \('dueling', 'linear', 'actor_critic'\)",
    ),
  ],
)
def test_unknown_cell_or_head_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    recurrent(2, **arguments)
