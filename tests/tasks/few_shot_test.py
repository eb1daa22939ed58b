"""Few-shot tasks: who is drawn, how it is labelled, turned and mixed.

All pixels are random numbers, so an image tells its character, its number among
the character's examples and by how much it was turned.
"""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks import few_shot_episodes
from metajax.tasks.few_shot import sample_distinct

CHARACTERS, EXAMPLES = 6, 7
IMAGES = np.random.default_rng(0).integers(
  0, 256, (CHARACTERS, EXAMPLES, 4, 4, 2), dtype=np.uint8
)
# Black and white are among them.
IMAGES[0, 0, 0, 0], IMAGES[0, 0, 0, 1] = 0, 255
# (character, example, turn) by pixels; np.rot90 turns counter-clockwise.
ORIGIN = {
  np.rot90(IMAGES[character, example], turn).tobytes(): (
    character,
    example,
    turn,
  )
  for character, example, turn in np.ndindex(CHARACTERS, EXAMPLES, 4)
}
NUM_TASKS = 2000
WAYS, SHOTS, QUERY_SHOTS = 3, 2, 3


def _keys(num_tasks, seed=0):
  return jax.random.split(jax.random.key(seed), num_tasks)


def _family(num_rotations=1, ways=WAYS, shots=SHOTS, query_shots=QUERY_SHOTS):
  return few_shot_episodes(
    jnp.asarray(IMAGES), ways, shots, query_shots, num_rotations
  )


@functools.cache
def _episodes(*arguments):
  """Draws tasks once for all tests, as most of the time is compilation."""
  draw = jax.jit(jax.vmap(_family(*arguments)))
  return jax.tree.map(np.asarray, draw(_keys(NUM_TASKS)))


def _origins(inputs):
  """Returns character, example and turn, int `[tasks, n, 3]`."""
  pixels = np.rint(inputs * 255).astype(np.uint8)
  return np.array([[ORIGIN[x.tobytes()] for x in task] for task in pixels])


@functools.cache
def _draw(*arguments):
  """Returns the origins and the labels, of the support and of the query."""
  support, query = _episodes(*arguments)
  return (
    _origins(support.inputs),
    support.targets,
    _origins(query.inputs),
    query.targets,
  )


def _assert_binomial(counts, trials, probability):
  """Each count is that of independent trials, within 4.5 sigma.

  P(|z| > 4.5) = 7e-6, so of 100 counts one is outside in one case of 1400.
  """
  sigma = np.sqrt(trials * probability * (1 - probability))
  assert np.abs(counts - trials * probability).max() < 4.5 * sigma


def _assert_uniform(counts):
  """Pearson's statistic is that of equally likely cells.

  It is close to chi-squared with k = cells - 1 degrees of freedom, of which
  P(X > k + 2 sqrt(k t) + 2 t) < exp(-t) (Laurent and Massart 2000, lemma 1);
  t = 9 makes it 1e-4.
  """
  counts = np.ravel(counts)
  expected, k = counts.mean(), counts.size - 1
  assert expected > 30  # That it be close.
  statistic = np.sum((counts - expected) ** 2) / expected
  assert statistic < k + 2 * np.sqrt(9 * k) + 18


@pytest.fixture(scope="module")
def drawn():
  return _draw()


def test_episode_has_the_shapes_types_and_values_of_the_images():
  support, query = _episodes()
  for batch, examples in ((support, SHOTS), (query, QUERY_SHOTS)):
    assert batch.inputs.shape == (NUM_TASKS, WAYS * examples, 4, 4, 2)
    assert batch.inputs.dtype == jnp.float32
    assert batch.targets.shape == (NUM_TASKS, WAYS * examples)
    assert batch.targets.dtype == jnp.int32
  values = np.unique(np.concatenate([support.inputs, query.inputs], axis=1))
  assert values.min() == 0 and values.max() == 1
  by_hand = np.unique(IMAGES).astype(np.float64) / 255
  # 1e-7: XLA may multiply by 1/255, both rounded to float32.
  distances = np.abs(values[:, None] - by_hand).min(axis=1)
  assert distances.max() < 1e-7


def test_labels_are_0_to_ways_each_equally_often_in_a_task(drawn):
  _, support_labels, _, query_labels = drawn
  for labels, examples in (
    (support_labels, SHOTS),
    (query_labels, QUERY_SHOTS),
  ):
    expected = np.repeat(np.arange(WAYS), examples)
    assert np.all(np.sort(labels, axis=1) == expected)


def test_label_and_class_are_one_to_one_in_support_and_query(drawn):
  """Traps 6 and 7: the query has the support's classes under its labels."""
  support, support_labels, query, query_labels = drawn
  origins = np.concatenate([support, query], axis=1)
  labels = np.concatenate([support_labels, query_labels], axis=1)
  for task_origins, task_labels in zip(origins, labels, strict=True):
    pairs = set(zip(task_labels, task_origins[:, 0], strict=True))
    # As many pairs as labels and as characters: a bijection.
    assert len(pairs) == WAYS
    assert len({character for _, character in pairs}) == WAYS


def test_all_images_of_a_task_are_different(drawn):
  """Queries that were in the support would be answered by heart (trap 8)."""
  support, _, query, _ = drawn
  origins = np.concatenate([support, query], axis=1)
  for task in origins:
    assert len(np.unique(task, axis=0)) == WAYS * (SHOTS + QUERY_SHOTS)


def test_class_gets_each_label_equally_often(drawn):
  support, labels, _, _ = drawn
  counts = np.zeros((CHARACTERS, WAYS))
  # SHOTS images of each class in each task, of which the first counts.
  for task_origins, task_labels in zip(support, labels, strict=True):
    for character, label in {
      (o[0], y) for o, y in zip(task_origins, task_labels, strict=True)
    }:
      counts[character, label] += 1
  assert counts.sum() == NUM_TASKS * WAYS
  _assert_binomial(counts, NUM_TASKS, 1 / CHARACTERS)


def test_example_serves_as_support_and_as_query_equally_often(drawn):
  support, _, query, _ = drawn
  for origins, examples in ((support, SHOTS), (query, QUERY_SHOTS)):
    counts = np.zeros((CHARACTERS, EXAMPLES))
    np.add.at(counts, tuple(origins[..., :2].reshape(-1, 2).T), 1)
    # An image is in a task or not: its class is, and then it is.
    probability = WAYS / CHARACTERS * examples / EXAMPLES
    _assert_binomial(counts, NUM_TASKS, probability)


def test_examples_of_one_class_do_not_tell_those_of_another(drawn):
  """One permutation for all classes would give all of them the same numbers."""
  support, labels, _, _ = drawn
  numbers = [
    [set(o[y == label, 1]) for label in range(WAYS)]
    for o, y in zip(support, labels, strict=True)
  ]
  for a, b in itertools.combinations(range(WAYS), 2):
    same = sum(task[a] == task[b] for task in numbers)
    # The 2 of 7 examples, in whatever order.
    _assert_binomial(same, NUM_TASKS, 1 / 21)


def test_order_of_support_and_query_is_random_and_not_the_same():
  _, support, _, query = _draw(2, WAYS, 2, 2)
  for labels in (support, query):
    counts = [np.sum(labels == label, axis=0) for label in range(WAYS)]
    _assert_binomial(np.array(counts), NUM_TASKS, 1 / WAYS)
  # Whatever is at one place of the support, the query's is any.
  equal = np.sum(support[:, :, None] == query[:, None, :], axis=0)
  assert equal.shape == (2 * WAYS, 2 * WAYS)
  _assert_binomial(equal, NUM_TASKS, 1 / WAYS)


@pytest.mark.parametrize("num_rotations", [1, 2, 4])
def test_turned_characters_are_classes_of_their_own(num_rotations):
  # The arguments are those of other tests, for which they are drawn too.
  arguments = {1: (), 2: (2, WAYS, 2, 2), 4: (4,)}[num_rotations]
  support, support_labels, query, query_labels = _draw(*arguments)
  origins = np.concatenate([support, query], axis=1)
  labels = np.concatenate([support_labels, query_labels], axis=1)
  counts = np.zeros((CHARACTERS, num_rotations))
  twice = 0
  for task_origins, task_labels in zip(origins, labels, strict=True):
    class_by_label = {}
    for (character, _, turn), label in zip(
      task_origins, task_labels, strict=True
    ):
      before = class_by_label.setdefault(label, (character, turn))
      assert before == (character, turn)
    assert len(set(class_by_label.values())) == WAYS
    for character, turn in class_by_label.values():
      counts[character, turn] += 1  # An IndexError for a turn too far.
    twice += len({character for character, _ in class_by_label.values()}) < WAYS
  _assert_binomial(counts, NUM_TASKS, WAYS / counts.size)
  # P(three classes of three characters), the number of classes being C * R.
  classes = counts.size
  different = (classes - num_rotations) * (classes - 2 * num_rotations)
  probability = 1 - different / ((classes - 1) * (classes - 2))
  if num_rotations == 1:
    assert twice == 0
  else:
    _assert_binomial(twice, NUM_TASKS, probability)


def test_largest_task_has_every_example_in_every_turn_once():
  family = _family(num_rotations=4, ways=4 * CHARACTERS, shots=3, query_shots=4)
  support, query = jax.jit(family)(jax.random.key(0))
  origins = _origins(np.concatenate([support.inputs, query.inputs])[None])
  assert sorted(map(tuple, origins[0])) == list(
    np.ndindex(CHARACTERS, EXAMPLES, 4)
  )
  for labels, examples in ((support.targets, 3), (query.targets, 4)):
    expected = np.repeat(np.arange(4 * CHARACTERS), examples)
    np.testing.assert_array_equal(np.sort(labels), expected)


def test_images_that_do_not_turn_may_be_oblong():
  family = few_shot_episodes(jnp.asarray(IMAGES[..., :3, :]), 2, 1, 1)
  support, query = jax.eval_shape(family, jax.random.key(0))
  assert support.inputs.shape == query.inputs.shape == (2, 4, 3, 2)


@pytest.mark.parametrize("limit, count", [(1, 1), (4, 3), (4, 4), (9, 2)])
def test_every_order_of_every_subset_is_equally_likely(limit, count):
  draw = jax.jit(
    jax.vmap(lambda key: sample_distinct(key, limit, count)),
  )
  found = collections.Counter(
    map(tuple, np.asarray(draw(_keys(6000))).tolist())
  )
  outcomes = list(itertools.permutations(range(limit), count))
  assert set(found) <= set(outcomes)
  if len(outcomes) == 1:
    assert found[outcomes[0]] == 6000
  else:
    _assert_uniform([found[outcome] for outcome in outcomes])


@pytest.mark.parametrize("limit, count", [(500, 500), (10**6, 500)])
def test_nothing_is_drawn_twice(limit, count):
  draw = jax.jit(jax.vmap(lambda key: sample_distinct(key, limit, count)))
  found = np.sort(np.asarray(draw(_keys(20))), axis=1)
  assert np.all(np.diff(found, axis=1) > 0)
  assert found.min() >= 0 and found.max() < limit
  # The mean of all: variance (limit^2 - 1) / 12 / draws, less if all are drawn.
  bound = 4.5 * limit / np.sqrt(12 * found.size)
  assert abs(found.mean() - (limit - 1) / 2) < bound


@pytest.mark.parametrize("count", [0, 5])
def test_impossible_counts_are_refused(count):
  with pytest.raises(AssertionError):
    sample_distinct(jax.random.key(0), 4, count)


def test_one_task_is_a_function_of_its_key_compiled_or_not():
  family, key = _family(4), _keys(NUM_TASKS)[7]
  among_many = jax.tree.map(lambda x: x[7], _episodes(4))
  alone = jax.jit(family)
  for found in (alone(key), alone(key), family(key)):
    for a, b in zip(*map(jax.tree.leaves, (found, among_many)), strict=True):
      # 1e-7: compiled, the division by 255 may be a product by 1/255.
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)


def test_tasks_of_different_keys_are_different():
  # Of 3 classes x 5 examples in order: more than 10^9 tasks.
  support, query = _episodes()
  inputs = np.concatenate([support.inputs, query.inputs], axis=1)
  assert len({task.tobytes() for task in inputs}) == NUM_TASKS


def test_images_enter_compiled_programs_as_arguments():
  """As constants they would be copied into, and fixed by, every program."""
  traces = []

  @jax.jit
  def sample(family, key):
    traces.append(family)
    return family(key)

  family, key = _family(), jax.random.key(0)
  (leaf,) = jax.tree.leaves(family)
  np.testing.assert_array_equal(leaf, IMAGES)
  constants = jax.make_jaxpr(sample)(family, key).consts
  assert sum(np.size(constant) for constant in constants) < IMAGES.size
  first = sample(family, key)
  traced = len(traces)
  inverted = sample(jax.tree.map(lambda x: 255 - x, family), key)
  assert len(traces) == traced
  for a, b in zip(first, inverted, strict=True):
    np.testing.assert_allclose(b.inputs, 1 - a.inputs, atol=1e-6)
    np.testing.assert_array_equal(b.targets, a.targets)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"images": IMAGES[0, 0, 0, 0]}, r"images: uint8 \(2,\) given, must be"),
    ({"images": IMAGES.astype(str)}, "images: <U3 "),
    ({"images": {}}, "images: nothing given"),
    ({"images": [[0] * 50] * 50}, "images: int64 .* and 2497 more given"),
    ({"images": (IMAGES, IMAGES[:, :5])}, "images: arrays of first axes "),
    (
      {"counts": [7] * 5},
      r"counts: int64 \(5,\) given, must be one .* 6 classes",
    ),
    ({"counts": [7] * 5 + [8]}, "counts: .* at most 7 examples"),
    ({"counts": [7] * 5 + [4]}, "shots=2 and .* at most 4, .* smallest class"),
    (
      {"counts": [7] * 5 + [1], "small_classes": True},
      "small_classes: the smallest class has 1 examples, must be 2 or more",
    ),
    ({"ways": 1}, "ways=1: must be 2"),
    ({"ways": (1, 3)}, r"ways=\(1, 3\): must be 2 or more, or two such"),
    ({"ways": (3, 2)}, r"ways=\(3, 2\): must be 2"),
    ({"ways": (2, 3, 4)}, r"ways=\(2, 3, 4\): must be 2"),
    ({"ways": (3, 7)}, r"ways=\(3, 7\): must be at most 6"),
    ({"shots": 1.5}, "shots=1.5: must be 1"),
    (
      {"shots": (1, 5)},
      r"shots=\(1, 5\) and query_shots=3: together at most 7",
    ),
    ({"ways": 7}, "ways=7: must be at most 6"),
    ({"ways": 13, "num_rotations": 2}, "ways=13: must be at most 12"),
    ({"shots": 0}, "shots=0: must be 1"),
    ({"shots": -1}, "shots=-1: must be 1"),
    ({"query_shots": 0}, "query_shots=0: must be 1"),
    (
      {"shots": 3, "query_shots": 5},
      "shots=3 and query_shots=5: together at most 7",
    ),
    ({"num_rotations": 3}, "num_rotations=3: must be 1, 2 or 4"),
    ({"num_rotations": 0}, "num_rotations=0: must be 1, 2 or 4"),
    (
      {"images": IMAGES[..., :3, :], "num_rotations": 2},
      "num_rotations=2: images of 4 x 3",
    ),
    (
      {"images": IMAGES[..., 0], "num_rotations": 4},
      r"num_rotations=4: inputs of \(6, 7, 4, 4\) cannot turn",
    ),
  ],
)
def test_impossible_arguments_are_named(arguments, message):
  arguments = {
    "images": IMAGES,
    "ways": WAYS,
    "shots": SHOTS,
    "query_shots": QUERY_SHOTS,
  } | arguments
  with pytest.raises(ValueError, match=f"^{message}"):
    few_shot_episodes(**arguments)
