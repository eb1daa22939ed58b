"""What every network that reads in order owes: causality, padding, queries.

The cells of `models.recurrent` are in tests/learners/recurrent_test.py.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import READERS, build_reader
from metajax.learners import learn_by_reading
from metajax.losses import accuracy, cross_entropy
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
N, FEATURES, WAYS, TASKS = 6, 4, 3, 2
SMALL = {
  "mann": {"units": 16, "slots": 9, "width": 8, "reads": 2},
  "ttt": {"width": 16, "heads": 2, "layers": 1, "minibatch": 2},
  "snail": {"channels": 6, "length": N, "attention": ((8, 5), (6, 8))},
  "transformer": {"width": 16, "hidden": 16, "layers": 2, "heads": 2},
}
SMALL["interleaved"] = SMALL["transformer"] | {"length": 2 * N}


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


class Case:
  """A small reader with random parameters, its functions compiled once."""

  def __init__(self, name):
    self.name = name
    self.reader = build_reader(name, **SMALL[name])
    reader = self.reader(WAYS)
    draw = np.random.default_rng(0)
    self.features = draw.normal(size=(N, FEATURES))
    self.labels = np.eye(WAYS)[draw.integers(0, WAYS, N)]
    self.params = jax.tree.map(
      lambda x: x + draw.normal(0, 0.3, x.shape),
      reader.init(RNG, self.features),
    )

    @jax.jit
    @jax.vmap
    def solve(features, labels, mask, asked):
      nothing = reader.start(self.params, features)
      outputs, memory = reader.read(
        self.params, nothing, features, labels, mask
      )
      return outputs, reader.predict(self.params, memory, asked)

    self._solve = solve

  def solve(self, features=None, labels=None, mask=None, asked=None):
    """Answers N variants of the sequence at once; None: as it is."""

    def spread(x, default):
      x = default if x is None else np.asarray(x)
      whole = (N, *default.shape)
      return np.broadcast_to(x, whole if x.ndim < len(whole) else x.shape)

    return self._solve(
      spread(features, self.features),
      spread(labels, self.labels),
      spread(mask, np.ones(N, bool)),
      spread(asked, self.features),
    )


@pytest.fixture(scope="module", params=sorted(SMALL))
def case(request):
  return Case(request.param)


def test_all_readers_are_tried():
  assert set(READERS) == {*SMALL, "lstm", "gru", "delta"}
  with pytest.raises(ValueError, match="reader 'ntm': must be one of .*'mann'"):
    build_reader("ntm")


@pytest.mark.slow
def test_outputs_are_the_predictions_of_every_prefix(case):
  outputs, _ = case.solve()
  prefixes = np.tril(np.ones((N, N), bool), -1)
  _, predictions = case.solve(mask=prefixes)
  for i in range(N):
    np.testing.assert_allclose(outputs[i, i], predictions[i, i], rtol=1e-8)


@pytest.mark.slow
def test_outputs_know_nothing_of_their_label_and_of_later_examples(case):
  """By differences: variant i has another example i."""
  outputs = case.solve()[0][0]
  others = case.features + 0.5 * np.eye(N)[:, :, None]
  of_inputs = np.abs(case.solve(others)[0] - outputs).max(-1)  # [changed, at]
  others = case.labels + 0.5 * np.eye(N)[:, :, None] * np.eye(WAYS)[0]
  of_labels = np.abs(case.solve(labels=others)[0] - outputs).max(-1)
  assert np.tril(of_inputs, -1).max() < 1e-12
  assert np.tril(of_labels).max() < 1e-12
  assert of_inputs[np.triu_indices(N)].min() > 1e-9
  assert of_labels[np.triu_indices(N, 1)].min() > 1e-9


def test_a_prediction_does_not_depend_on_other_queries(case):
  one = case.solve()[1]
  others = np.array(case.features)
  others[1:] = 2.0
  np.testing.assert_allclose(case.solve(asked=others)[1][0, 0], one[0, 0])


def test_padding_has_no_effect(case):
  """In front, between and behind: variants of places that are left out."""
  masks = np.ones((N, N), bool)
  masks[0, :2] = masks[1, 2:4] = masks[2, 4:] = masks[3, [0, 3]] = False
  junk = np.where(masks[..., None], case.features, 7.0)
  outputs, predictions = case.solve(junk, mask=masks)
  # The same, its padding at the end.
  order = np.argsort(~masks, axis=1, kind="stable")
  expected = case.solve(
    case.features[order], case.labels[order], np.sort(masks)[:, ::-1]
  )
  np.testing.assert_allclose(predictions, expected[1], rtol=1e-8)
  for i in range(4):
    np.testing.assert_allclose(
      outputs[i][masks[i]], expected[0][i, : masks[i].sum()], rtol=1e-8
    )


def test_order_matters(case):
  turned = case.solve(case.features[::-1], case.labels[::-1])[1]
  assert np.abs(turned - case.solve()[1]).max() > 1e-4


@pytest.mark.slow
def test_reading_goes_on(case):
  reader = case.reader(WAYS)

  @jax.jit
  def in_parts(params):
    memory, outputs = reader.start(params, case.features), []
    for part in (slice(2), slice(2, N)):
      mask = jnp.ones(N, bool)[part]
      found, memory = reader.read(
        params, memory, case.features[part], case.labels[part], mask
      )
      outputs.append(found)
    return jnp.concatenate(outputs), reader.predict(
      params, memory, case.features
    )

  expected = jax.tree.map(lambda x: x[0], case.solve())
  chex.assert_trees_all_close(in_parts(case.params), expected, rtol=1e-8)


def _episodes(seed, num_tasks):
  """Blobs at three places, of which every task has other labels."""
  draw = np.random.default_rng(seed)
  classes = np.tile(np.arange(WAYS), (num_tasks, 3))
  classes = draw.permuted(classes, axis=1)
  inputs = 2.0 * np.eye(WAYS)[classes]
  inputs += 0.2 * draw.normal(size=inputs.shape)
  labels = draw.permuted(np.tile(np.arange(WAYS), (num_tasks, 1)), axis=1)
  targets = np.take_along_axis(labels, classes, axis=1)
  both = Batch(inputs, targets)
  return Episode(
    jax.tree.map(lambda x: x[:, :N], both),
    jax.tree.map(lambda x: x[:, N:], both),
  )


@pytest.mark.slow
@pytest.mark.parametrize("of_support", [True, False])
def test_gradients_are_those_of_the_loss(case, of_support):
  learner = learn_by_reading(
    MLP(FEATURES, ()),
    case.reader,
    cross_entropy,
    num_outputs=WAYS,
    of_support=of_support,
    metrics={"accuracy": accuracy},
  )
  meta_grad = jax.jit(learner.meta_grad)
  episodes = _episodes(0, TASKS)
  params = learner.init(RNG, episodes.support.inputs[0])
  draw = np.random.default_rng(0)
  direction = jax.tree.map(lambda x: draw.normal(size=x.shape), params)

  def loss(step):
    moved = jax.tree.map(lambda x, d: x + step * d, params, direction)
    return meta_grad(moved, episodes, RNG)[1]["loss"]

  grads, metrics = meta_grad(params, episodes, RNG)
  pairs = zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
  slope = sum(np.vdot(g, d) for g, d in pairs)
  np.testing.assert_allclose(
    slope, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-5
  )

  # The loss is of the predictions that evaluation sees.
  def losses(episode):
    support, query = episode
    task_params = learner.adapt(params, support, RNG)
    after = learner.predict(task_params, query.inputs)
    return cross_entropy(after, query.targets)

  if not of_support:
    expected = np.mean(jax.jit(jax.vmap(losses))(episodes))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-8)
