"""The external memory, against a loop over its slots."""

import jax
import numpy as np
import pytest

from metajax.context import memory_augmented
from metajax.context.memory import least_used

UNITS, SLOTS, WIDTH, READS, INPUTS, STEPS = 5, 6, 3, 2, 4, 9
DECAY = 0.8


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _by_hand(params, inputs):
  """The equations of the paper, a head and a slot at a time."""

  def dense(name, x):
    layer = params[name]
    return x @ layer["kernel"] + layer["bias"]

  hidden, cell = np.zeros(UNITS), np.zeros(UNITS)
  memory, found = np.zeros((SLOTS, WIDTH)), np.zeros((READS, WIDTH))
  weights, usage = np.zeros((READS, SLOTS)), np.zeros(SLOTS)
  outputs = []
  for x in inputs:
    x = np.concatenate([x, found.ravel(), hidden])
    new, keep, put, out = np.split(dense("controller", x), 4)
    cell = _sigmoid(keep + 1) * cell + _sigmoid(put) * np.tanh(new)
    hidden = _sigmoid(out) * np.tanh(cell)
    keys = np.tanh(dense("keys", hidden)).reshape(READS, WIDTH)
    gates = _sigmoid(dense("gates", hidden))
    strengths = np.ones(READS)
    if "strengths" in params:
      strengths = np.log1p(np.exp(dense("strengths", hidden)))
    # Usage before this step tells where it is written.
    free = sorted(range(SLOTS), key=lambda i: (usage[i], i))[:READS]
    before = weights.copy()
    usage = DECAY * usage
    written = np.zeros((READS, SLOTS))
    for head in range(READS):
      scores = np.zeros(SLOTS)
      for i in range(SLOTS):
        norms = np.linalg.norm(keys[head]) * np.linalg.norm(memory[i])
        cosine = keys[head] @ memory[i] / norms if norms else 0.0
        scores[i] = np.exp(strengths[head] * cosine)
      weights[head] = scores / scores.sum()
      found[head] = sum(weights[head, i] * memory[i] for i in range(SLOTS))
      for i in range(SLOTS):
        is_free = 1.0 if i in free else 0.0
        written[head, i] = (
          gates[head] * before[head, i] + (1 - gates[head]) * is_free
        )
        usage[i] += weights[head, i] + written[head, i]
    for i in range(SLOTS):
      if i in free:
        memory[i] = 0.0
      memory[i] = memory[i] + written[:, i] @ keys
    outputs.append(dense("output", np.concatenate([hidden, found.ravel()])))
  return np.stack(outputs), memory, usage


@pytest.mark.parametrize("sharpened", [True, False])
def test_equals_a_loop_over_slots(sharpened):
  network = memory_augmented(
    2,
    units=UNITS,
    slots=SLOTS,
    width=WIDTH,
    reads=READS,
    decay=DECAY,
    sharpened=sharpened,
  )
  draw = np.random.default_rng(0)
  inputs = draw.normal(size=(STEPS, INPUTS))
  params = jax.tree.map(
    lambda x: x + draw.normal(0, 0.7, x.shape),
    network.init(jax.random.key(0), inputs),
  )

  @jax.jit
  def run(params, inputs):
    def one(state, x):
      hidden, state = network.read(params, state, x)
      return state, network.head(params, hidden)

    return jax.lax.scan(one, network.start(), inputs)

  state, outputs = run(params, inputs)
  expected, memory, usage = _by_hand(jax.tree.map(np.asarray, params), inputs)
  # The length of a vector has 1e-8 under its root, so that zeros stay zeros.
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.slots, memory, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.usage, usage, rtol=1e-5, atol=1e-6)


def test_the_least_used_slots_are_free():
  usage = np.array([0.3, 0.0, 2.0, 0.0, 0.1])
  np.testing.assert_array_equal(least_used(usage, 2), [0, 1, 0, 1, 0])
  np.testing.assert_array_equal(least_used(usage, 3), [0, 1, 0, 1, 1])
  np.testing.assert_array_equal(least_used(np.zeros(4), 1), [1, 0, 0, 0])


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"units": 0}, "units=0: must be 1 or more"),
    ({"reads": 9, "slots": 8}, "reads=9: must be at most slots=8"),
    ({"decay": 1.5}, r"decay=1.5: must be 0 to 1\."),
  ],
)
def test_bad_sizes_are_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    memory_augmented(2, **sizes)
