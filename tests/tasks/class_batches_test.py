"""Class batches: who is drawn, in which order, and under which label.

An example's numbers tell its class and its place in the class.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks import class_batches

CLASSES, EXAMPLES, PER_CLASS, DRAWS = 3, 5, 2, 1000
DATA = np.stack(
  np.meshgrid(np.arange(CLASSES), np.arange(EXAMPLES), indexing="ij"), -1
).astype(np.float32)[:, :, None]


def _family(per_class=PER_CLASS):
  return class_batches(jnp.asarray(DATA), per_class)


@functools.cache
def _draw(per_class=PER_CLASS):
  """Draws once for all tests, as most of the time is compilation."""
  keys = jax.random.split(jax.random.key(0), DRAWS)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(_family(per_class)))(keys))


def _assert_binomial(counts, probability):
  """Each count is that of independent trials, within 4.5 sigma."""
  sigma = np.sqrt(DRAWS * probability * (1 - probability))
  assert np.abs(counts - DRAWS * probability).max() < 4.5 * sigma


def test_class_changes_fastest_and_is_the_label():
  query = _draw().query
  assert query.inputs.shape == (DRAWS, CLASSES * PER_CLASS, 1, 2)
  assert query.inputs.dtype == jnp.float32
  assert query.targets.dtype == jnp.int32
  expected = np.tile([0, 1, 2, 0, 1, 2], (DRAWS, 1))
  np.testing.assert_array_equal(query.targets, expected)
  np.testing.assert_array_equal(query.inputs[:, :, 0, 0], expected)


def test_bytes_are_pixels_from_0_to_1():
  """As in few-shot tasks, on which the same network may be tested."""
  key, data = jax.random.key(0), np.uint8(100 * DATA)
  expected = class_batches(np.float32(data) / 255, PER_CLASS)(key).query
  found = class_batches(data, PER_CLASS)(key).query
  assert found.inputs.dtype == jnp.float32
  np.testing.assert_allclose(found.inputs, expected.inputs, rtol=1e-6)


def test_support_and_query_are_one_batch():
  for a, b in zip(*_draw(), strict=True):
    np.testing.assert_array_equal(a, b)


def test_no_example_is_drawn_twice_in_a_batch():
  places = _draw().query.inputs[:, :, 0, 1].reshape(DRAWS, PER_CLASS, CLASSES)
  assert np.all(places[:, 0] != places[:, 1])


def test_each_example_is_at_each_place_equally_often():
  inputs = _draw().query.inputs[:, :, 0].astype(int)
  for place in range(CLASSES * PER_CLASS):
    counts = np.bincount(inputs[:, place, 1], minlength=EXAMPLES)
    assert len(counts) == EXAMPLES
    _assert_binomial(counts, 1 / EXAMPLES)


def test_examples_of_one_class_do_not_tell_those_of_another():
  places = _draw().query.inputs[:, :CLASSES, 0, 1]
  for a, b in itertools.combinations(range(CLASSES), 2):
    _assert_binomial(np.sum(places[:, a] == places[:, b]), 1 / EXAMPLES)


def test_largest_batch_has_every_example_once():
  inputs = jax.jit(_family(EXAMPLES))(jax.random.key(0)).query.inputs
  assert sorted(map(tuple, np.asarray(inputs[:, 0]))) == list(
    np.ndindex(CLASSES, EXAMPLES)
  )


def test_batch_is_a_function_of_its_key_compiled_or_not():
  family = _family()
  key = jax.random.split(jax.random.key(0), DRAWS)[7]
  for found in (family(key), jax.jit(family)(key)):
    for a, b in zip(*map(jax.tree.leaves, (found, _draw())), strict=True):
      np.testing.assert_array_equal(a, b[7])
  # Of 20^3 batches in order.
  assert len({x.tobytes() for x in _draw().query.inputs}) > DRAWS / 2


def test_examples_enter_compiled_programs_as_arguments():
  """As constants they would be copied into, and fixed by, every program."""
  family, key = _family(), jax.random.key(0)
  (leaf,) = jax.tree.leaves(family)
  np.testing.assert_array_equal(leaf, DATA)
  sample = jax.jit(lambda family, key: family(key))
  constants = jax.make_jaxpr(sample)(family, key).consts
  assert sum(np.size(constant) for constant in constants) < DATA.size
  first = sample(family, key).query
  moved = sample(jax.tree.map(lambda x: x + 10, family), key).query
  np.testing.assert_array_equal(moved.inputs, first.inputs + 10)
  np.testing.assert_array_equal(moved.targets, first.targets)


@pytest.mark.parametrize(
  "examples, message",
  [
    ([DATA[0], DATA[1]], "class_batches: examples must be one array, not a li"),
    (DATA[0, 0, 0], "examples: float32 .* must be numbers .classes, examples"),
  ],
)
def test_examples_that_are_no_array_of_classes_are_named(examples, message):
  with pytest.raises(ValueError, match=message):
    class_batches(examples, 1)


@pytest.mark.parametrize("per_class", [-1, 0, 6])
def test_impossible_numbers_are_named(per_class):
  with pytest.raises(ValueError, match=f"^per_class={per_class}: .* 1 to 5"):
    _family(per_class)
