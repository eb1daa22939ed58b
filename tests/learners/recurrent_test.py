"""Learning by reading: what a prediction may know, and its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metajax.learners import recurrent as recurrent_learner
from metajax.learners.heads import as_vectors
from metajax.learners.recurrent import sequence_learner
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.models.recurrent import recurrent as recurrent_network
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
FEATURES, OUTPUTS, UNITS = 2, 3, 5
TASKS, LENGTH, QUERIES = 3, 6, 4
PARTS = slice(0, 3), slice(3, 6)
ENCODER = MLP(OUTPUTS, (4,))
# Classes are read as one-hot, numbers as they are.
KINDS = ("classes", "numbers")
LOSSES = {"classes": cross_entropy, "numbers": mean_squared_error}
CELLS = ("gru", "lstm")


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _targets(kind, rng, *shape):
  if kind == "classes":
    return rng.integers(0, OUTPUTS, shape)
  return rng.normal(size=(*shape, OUTPUTS))


def _batch(kind, length=LENGTH, seed=0):
  rng = np.random.default_rng(seed)
  return Batch(rng.normal(size=(length, FEATURES)), _targets(kind, rng, length))


def _episodes(kind):
  """Tasks of noise `[TASKS, n, ...]`: nothing about them is special."""
  rng = np.random.default_rng(3)
  return Episode(
    *(
      Batch(
        rng.normal(size=(TASKS, n, FEATURES)), _targets(kind, rng, TASKS, n)
      )
      for n in (LENGTH, QUERIES)
    )
  )


@functools.cache
def _learner(cell="lstm"):
  """`(learner, params)`, the functions compiled; all parameters matter."""
  learner = sequence_learner(ENCODER, units=UNITS, cell=cell)
  inputs = jnp.zeros((LENGTH, FEATURES))
  like = jax.eval_shape(learner.init, RNG, inputs)
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape), like)
  read, predict = jax.jit(learner.read), jax.jit(learner.predict)
  return learner._replace(read=read, predict=predict), params


def _nothing(cell="lstm"):
  learner, params = _learner(cell)
  return learner.start(params, jnp.zeros((LENGTH, FEATURES)))


def _read(batch, cell="lstm", memory=None):
  learner, params = _learner(cell)
  return learner.read(
    params, _nothing(cell) if memory is None else memory, batch
  )


# --- The protocol again, an example at a time. ---


def _dense(params, x):
  return x @ params["kernel"] + params["bias"]


def _encoded(params, x):
  layers = params["model"]["params"]
  hidden = jnp.maximum(_dense(layers["Dense_0"], x), 0)
  return _dense(layers["Dense_1"], hidden)


def _vector(label):
  """A class as one-hot, numbers as they are."""
  if np.ndim(label):
    return label
  return np.array([float(label == c) for c in range(OUTPUTS)])


@functools.cache
def _step(cell):
  """One example: the prediction, and the state after it."""
  network = recurrent_network(OUTPUTS, units=UNITS, cell=cell)

  @jax.jit
  def step(params, state, x, label):
    inputs = jnp.concatenate([_encoded(params, x), label])
    hidden, state = network.read(params["network"], state, inputs)
    return network.head(params["network"], hidden), state

  return step


def _by_hand(params, support, query, cell="lstm"):
  """Predictions `[LENGTH + QUERIES, outputs]`, the query's after the support.

  Each of the query is the example that comes next, and the last one.
  """
  zeros = np.zeros(UNITS)
  state = zeros if cell == "gru" else (zeros, zeros)
  label, predictions = np.zeros(OUTPUTS), []
  for x, y in zip(*support[:2], strict=True):
    prediction, state = _step(cell)(params, state, x, label)
    predictions.append(prediction)
    label = _vector(y)
  for x in query.inputs:
    predictions.append(_step(cell)(params, state, x, label)[0])
  return np.stack(predictions)


# --- The tests. ---


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_equal_those_of_a_loop_over_the_examples(cell, kind):
  learner, params = _learner(cell)
  support, query = _batch(kind), _batch(kind, QUERIES, seed=4)
  predictions, memory = _read(support, cell)
  expected = _by_hand(params, support, query, cell)
  np.testing.assert_allclose(predictions, expected[:LENGTH], rtol=1e-9)
  np.testing.assert_allclose(
    learner.predict(params, memory, query.inputs), expected[LENGTH:], rtol=1e-9
  )


@pytest.mark.parametrize("kind", KINDS)
def test_label_is_known_one_step_after_its_example(kind):
  batch = _batch(kind)
  before, _ = _read(batch)
  for t in range(LENGTH):
    targets = batch.targets.copy()
    targets[t] = (targets[t] + 1) % OUTPUTS
    after, memory = _read(batch._replace(targets=targets))
    changed = np.any(after != before, axis=1)
    np.testing.assert_array_equal(changed, np.arange(LENGTH) > t)
  # The last label changes no prediction, but what is read next.
  np.testing.assert_array_equal(memory.label, _vector(targets[-1]))


def test_example_is_known_from_its_own_prediction_on():
  batch = _batch("numbers")
  before, _ = _read(batch)
  for t in range(LENGTH):
    inputs = batch.inputs.copy()
    inputs[t] += 1
    after, _ = _read(batch._replace(inputs=inputs))
    changed = np.any(after != before, axis=1)
    np.testing.assert_array_equal(changed, np.arange(LENGTH) >= t)


@pytest.mark.parametrize("cell", CELLS)
def test_sequence_read_in_two_parts_is_as_one_read_whole(cell):
  batch = _batch("classes")
  whole, memory = _read(batch, cell)
  halves = [Batch(batch.inputs[part], batch.targets[part]) for part in PARTS]
  first, between = _read(halves[0], cell)
  second, after = _read(halves[1], cell, between)
  np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-12)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), after, memory
  )
  # What is between them matters: state and label.
  for other in (
    _nothing(cell),
    between._replace(state=_nothing(cell).state),
    between._replace(label=_nothing(cell).label),
  ):
    assert np.all(_read(halves[1], cell, other)[0][0] != second[0])


@pytest.mark.parametrize("kind", KINDS)
def test_each_query_is_predicted_as_if_it_were_the_next_example(kind):
  """Alone, whatever its label, and whatever else is asked."""
  learner, params = _learner()
  _, memory = _read(_batch(kind))
  queries = _batch(kind, LENGTH, seed=4)
  found = learner.predict(params, memory, queries.inputs)
  for i in range(LENGTH):
    # It comes first of a sequence whose rest tells nothing of it.
    rolled = jax.tree.map(lambda x: np.roll(x, -i, axis=0), queries)  # noqa: B023
    predictions, _ = _read(rolled, memory=memory)
    np.testing.assert_allclose(predictions[0], found[i], rtol=1e-12)
    other = np.roll(queries.inputs, 1, axis=0)
    other[i] = queries.inputs[i]
    np.testing.assert_allclose(
      learner.predict(params, memory, other)[i], found[i], rtol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_meta_gradient_is_that_of_the_loop_over_the_examples(kind):
  """Of the mean over support and query; metrics are the query's alone."""
  learner = recurrent_learner(
    ENCODER, LOSSES[kind], units=UNITS, metrics={"query": LOSSES[kind]}
  )
  _, params = _learner()
  episodes = _episodes(kind)

  def losses(params):
    """Of each example `[TASKS, LENGTH + QUERIES]`, in numpy."""
    found = []
    for task in range(TASKS):
      support, query = jax.tree.map(lambda x: x[task], episodes)  # noqa: B023
      targets = [*support.targets, *query.targets]
      for p, y in zip(_by_hand(params, support, query), targets, strict=True):
        if kind == "classes":
          found.append(np.log(np.exp(p).sum()) - p[y])
        else:
          found.append(np.mean((p - y) ** 2))
    return np.reshape(found, (TASKS, LENGTH + QUERIES))

  grads, metrics = jax.jit(learner.meta_grad)(params, episodes, RNG)
  expected = losses(params)
  np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-9)
  np.testing.assert_allclose(
    metrics["query"], expected[:, LENGTH:].mean(), rtol=1e-9
  )
  flat, unflatten = ravel_pytree(params)
  slope = np.asarray(ravel_pytree(grads)[0])
  assert slope.dtype == np.float64
  rng = np.random.default_rng(0)
  for _ in range(4):
    direction = rng.normal(size=flat.size)
    near, far = (
      losses(unflatten(flat + step * direction)).mean()
      for step in (-1e-6, 1e-6)
    )
    np.testing.assert_allclose(
      slope @ direction, (far - near) / 2e-6, rtol=1e-6
    )


def test_adapted_parameters_predict_as_the_sequence_goes_on():
  learner = recurrent_learner(ENCODER, cross_entropy, units=UNITS)
  _, params = _learner()
  support, query = _batch("classes"), _batch("classes", QUERIES, seed=4)

  @jax.jit
  def answers(params, support, inputs):
    return learner.predict(learner.adapt(params, support, RNG), inputs)

  found = answers(params, support, query.inputs)
  expected = _by_hand(params, support, query)[LENGTH:]
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  # It is the order of the support that is read, not the set.
  reverse = jax.tree.map(lambda x: x[::-1], support)
  assert np.all(answers(params, reverse, query.inputs) != found)


def test_number_of_outputs_may_differ_from_the_encoders():
  """The labels that are read are as wide as the predictions."""
  outputs = 5
  learner = sequence_learner(ENCODER, num_outputs=outputs, units=UNITS)
  batch = _batch("classes")

  def run(rng):
    params = learner.init(rng, batch.inputs)
    return params, learner.read(
      params, learner.start(params, batch.inputs), batch
    )

  params, (predictions, memory) = jax.eval_shape(run, RNG)
  assert predictions.shape == (LENGTH, outputs)
  assert memory.label.shape == (outputs,)
  kernel = params["network"]["params"]["encoder"]["kernel"]
  assert kernel.shape == (OUTPUTS + outputs, UNITS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("cell", CELLS)
def test_memory_keeps_the_precision_of_the_encoder(cell, dtype):
  """Whatever the precision of the cell is; a scan allows no change of it."""
  learner, params = _learner(cell)
  params, batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype), (params, _batch("numbers"))
  )

  def run(params, batch):
    _, memory = learner.read(params, learner.start(params, batch.inputs), batch)
    return learner.read(params, memory, batch)[1]

  memory = jax.eval_shape(run, params, batch)
  for leaf in jax.tree.leaves(memory):
    assert leaf.dtype == dtype


def test_classes_are_read_as_one_hot_and_numbers_as_they_are():
  np.testing.assert_array_equal(
    as_vectors(jnp.array([2, 0]), 3, jnp.float64), [[0, 0, 1], [1, 0, 0]]
  )
  numbers = np.array([[0.5, -1.5], [2.0, 3.0]])
  found = as_vectors(jnp.asarray(numbers), 2, jnp.float32)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, numbers)
  # One number an example is a vector of one.
  np.testing.assert_array_equal(
    as_vectors(jnp.array([0.5, 2.0]), 1, jnp.float64), [[0.5], [2.0]]
  )
  # An empty support.
  assert as_vectors(jnp.zeros((0, 2)), 2, jnp.float32).shape == (0, 2)
  assert as_vectors(jnp.zeros(0), 1, jnp.float32).shape == (0, 1)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"num_steps": -1}, "num_steps=-1: must be 0 or more"),
    ({"num_eval_steps": -2}, "num_eval_steps=-2: must be 0 or more"),
  ],
)
def test_negative_steps_are_refused(arguments, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    recurrent_learner(ENCODER, cross_entropy, **arguments)
