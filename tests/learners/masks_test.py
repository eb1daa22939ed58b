"""Padding counts nowhere: what a learner makes of masked episodes.

Every learner of the registry, on episodes that have been padded, against the
same learner on the same episodes without padding.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.learners import (
  REGISTRY,
  cosine,
  logistic,
  nearest_mean,
  ridge,
  svm,
)
from metajax.losses import (
  accuracy,
  accuracy_by_presentation,
  cross_entropy,
  mean_squared_error,
  over_examples,
)
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode
from tests.slow import slow_but

RNG = jax.random.key(0)
TASKS, WAYS, SUPPORT, QUERY, PADDING = 2, 3, 6, 5, 3
OPTIONS = {
  "recurrent": {"units": 8, "num_outputs": WAYS},
  "prototypical": {"num_outputs": WAYS},
  "cosine": {"num_outputs": WAYS},
  "svm": {"num_outputs": WAYS},
  "ridge": {"num_outputs": WAYS},
  "imaml": {"damping": 32.0},
}


def _batch(draw, n, kind):
  inputs = draw.normal(size=(TASKS, n, 4)).astype(np.float32)
  if kind == "classes":
    targets = np.tile(np.arange(n) % WAYS, (TASKS, 1))
    return Batch(inputs, draw.permuted(targets, axis=1).astype(np.int32))
  return Batch(inputs, draw.normal(size=(TASKS, n, WAYS)).astype(np.float32))


@functools.cache
def _episodes(kind):
  draw = np.random.default_rng(0)
  return Episode(_batch(draw, SUPPORT, kind), _batch(draw, QUERY, kind))


def _padded(batch, where):
  """Adds examples that would change whatever they count in."""
  shape = (TASKS, PADDING, *batch.inputs.shape[2:])
  inputs = np.full(shape, 7.0, np.float32)
  targets = np.ones((TASKS, PADDING, *batch.targets.shape[2:]))
  both = {
    "first": lambda x, pad: np.concatenate([pad.astype(x.dtype), x], axis=1),
    "last": lambda x, pad: np.concatenate([x, pad.astype(x.dtype)], axis=1),
  }[where]
  real = np.ones(batch.inputs.shape[:2], bool)
  return Batch(
    both(batch.inputs, inputs),
    both(batch.targets, targets),
    both(real, np.zeros((TASKS, PADDING))),
  )


# Those that are no other one with other arguments.
DISTINCT = [n for n in REGISTRY if n not in ("fomaml", "anil", "boil")]
FAST = [(n, "classes") for n in ("maml", "prototypical")]
CASES = [(name, "classes") for name in DISTINCT]
CASES += [
  ("reptile", "numbers"),
  ("ridge", "numbers"),
  ("recurrent", "numbers"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
  "case",
  slow_but(FAST, CASES),
  ids="-".join,
)
def test_a_masked_episode_is_the_episode_without_its_padding(case):
  """With statistics of the batch, which padding must not enter either."""
  name, kind = case
  loss_fn = cross_entropy if kind == "classes" else mean_squared_error
  learner = REGISTRY[name](
    MLP(WAYS, (8,), normalization="batch"),
    loss_fn,
    optax.sgd(0.1),
    2,
    metrics={"score": accuracy if kind == "classes" else mean_squared_error},
    **OPTIONS.get(name, {}),
  )
  plain = _episodes(kind)
  masked = Episode(
    _padded(plain.support, "first"), _padded(plain.query, "last")
  )

  @jax.jit  # One program, which is compiled once.
  def run(plain, masked):
    params = learner.init(RNG, plain.support.inputs[0])
    grads = [learner.meta_grad(params, e, RNG) for e in (plain, masked)]
    one, other = (jax.tree.map(lambda x: x[0], e) for e in (plain, masked))
    expected = learner.predict(
      learner.adapt(params, one.support, RNG), one.query.inputs
    )
    found = learner.predict(
      learner.adapt(params, other.support, RNG),
      other.query.inputs,
      mask=other.query.mask,
    )
    return grads, (expected, found[:QUERY])

  grads, predictions = run(plain, masked)
  chex.assert_trees_all_close(*grads, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(*predictions, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("transductive", [True, False])
def test_evaluation_of_masked_tasks_is_that_of_plain_ones(transductive):
  plain = _episodes("classes")
  masked = Episode(
    _padded(plain.support, "last"), _padded(plain.query, "first")
  )
  learner = metajax.learners.maml(
    MLP(WAYS, (8,), normalization="batch"), cross_entropy, optax.sgd(0.1), 1
  )
  params = learner.init(RNG, plain.support.inputs[0])

  def scores(episodes):
    def tasks(stored, rng):  # Any of the two.
      i = jax.random.randint(rng, (), 0, TASKS)
      return jax.tree.map(lambda x: x[i], stored)

    return metajax.evaluate(
      learner,
      params,
      jax.tree_util.Partial(tasks, jax.tree.map(jnp.asarray, episodes)),
      {"loss": cross_entropy, "accuracy": accuracy},
      RNG,
      num_tasks=8,
      transductive=transductive,
    )

  one, other = scores(masked), scores(plain)
  for name in one:
    np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_a_task_without_a_query_has_no_score():
  def tasks(rng):
    batch = Batch(jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.zeros(2, bool))
    return Episode(batch._replace(mask=None), batch)

  learner = metajax.learners.maml(
    MLP(1, ()), mean_squared_error, optax.sgd(0.1), 1
  )
  params = learner.init(RNG, jnp.ones((2, 1)))
  with pytest.raises(ValueError, match="^tasks: 2 of 2 have no query example"):
    metajax.evaluate(
      learner, params, tasks, {"mse": mean_squared_error}, RNG, num_tasks=2
    )


def test_a_support_of_padding_alone_teaches_nothing():
  learner = metajax.learners.maml(
    MLP(1, (4,)), mean_squared_error, optax.sgd(0.1), 3
  )
  params = learner.init(RNG, jnp.ones((2, 1)))
  padding = Batch(jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.zeros(2, bool))
  nothing = Batch(jnp.ones((0, 1)), jnp.ones((0, 1)))  # 0 shots
  for batch in (padding, nothing):
    chex.assert_trees_all_equal(learner.adapt(params, batch, RNG), params)


def test_flax_statistics_of_padding_alone_stay_as_they_are():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None, train=False):
      norm = nn.BatchNorm(use_running_average=not train)
      real = None if mask is None else mask[:, None]
      return nn.Dense(1)(norm(nn.Dense(3)(x), mask=real))

  learner = metajax.learners.maml(
    Net(), mean_squared_error, optax.sgd(0.1), num_steps=1
  )
  x = jnp.ones((2, 1))
  params = learner.init(RNG, x)
  padding = Batch(x, x, jnp.zeros(2, bool))
  chex.assert_trees_all_equal(learner.adapt(params, padding, RNG), params)
  seen = padding._replace(mask=jnp.ones(2, bool))
  found, plain = (
    learner.adapt(params, batch, RNG) for batch in (seen, Batch(x, x))
  )
  chex.assert_trees_all_close(found, plain, rtol=1e-5)


HEADS = {
  "nearest_mean": nearest_mean(WAYS),
  "cosine": cosine(WAYS),
  "svm": svm(WAYS),
  "ridge": ridge(WAYS, 0.5),
  "logistic": logistic(WAYS, 0.5),
}


@pytest.mark.parametrize(
  "name", slow_but(["nearest_mean", "ridge", "numbers"], [*HEADS, "numbers"])
)
def test_heads_do_not_see_padding_that_is_not_finite(name):
  """As that of a network that divides inputs of zeros by their norm."""
  plain = _episodes("numbers" if name == "numbers" else "classes").support
  head = HEADS.get(name, ridge(strength=0.5))
  masked = _padded(plain, "first")
  found, expected = (
    head.fit(features, labels[0], mask)
    for features, labels, mask in (
      (
        jnp.where(masked.mask[0][:, None], masked.inputs[0], jnp.nan),
        jnp.asarray(masked.targets),
        masked.mask[0],
      ),
      (jnp.asarray(plain.inputs[0]), jnp.asarray(plain.targets), None),
    )
  )
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["ridge"], HEADS))
def test_heads_do_not_see_padding(name):
  head = HEADS[name]
  plain = _episodes("classes").support
  masked = _padded(plain, "first")
  asked = _episodes("classes").query.inputs[0]
  one = head.fit(plain.inputs[0], jnp.asarray(plain.targets[0]))
  other = head.fit(
    masked.inputs[0], jnp.asarray(masked.targets[0]), mask=masked.mask[0]
  )
  np.testing.assert_allclose(
    head.predict(other, asked), head.predict(one, asked), rtol=1e-3, atol=1e-4
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", slow_but(["ridge"], ["nearest_mean", "cosine", "svm", "ridge"])
)
def test_a_class_without_examples_is_predicted_of_nothing(name):
  """Variable ways: its logit is finite, and a softmax gives it nothing."""
  heads = {
    "nearest_mean": nearest_mean,
    "cosine": cosine,
    "svm": svm,
    "ridge": ridge,
  }
  head = heads[name](4)
  features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  labels = jnp.array([0, 3, 0, 3, 0, 3])

  def loss(features):
    logits = head.predict(head.fit(features, labels), features)
    return cross_entropy(logits, labels), logits

  grads, logits = jax.grad(loss, has_aux=True)(features)
  assert np.isfinite(grads).all() and np.isfinite(logits).all()
  probabilities = jax.nn.softmax(logits)
  np.testing.assert_array_equal(probabilities[:, [1, 2]], 0)
  assert set(np.argmax(logits, -1).tolist()) <= {0, 3}


@pytest.mark.parametrize("name", ["nearest_mean", "cosine", "svm", "ridge"])
@pytest.mark.parametrize("shots", [0, 3])
def test_heads_of_no_example_have_derivatives_of_zero(name, shots):
  """With 3 the support is padding alone."""
  head, mask = HEADS[name], jnp.zeros(shots, bool)
  features = jnp.ones((2, 5))

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def slopes(seen, asked):
    logits = head.predict(head.fit(seen, jnp.zeros(shots, int), mask), asked)
    return cross_entropy(logits, jnp.zeros(2, int))

  for found in slopes(jnp.ones((shots, 5)), features):
    np.testing.assert_array_equal(found, 0)


@pytest.mark.slow
def test_prototypes_without_a_number_of_classes():
  """No default makes NaN: the width of the embedding says nothing of it."""
  named, unnamed = (
    metajax.learners.prototypical(MLP(16, (8,)), cross_entropy, **options)
    for options in ({"num_outputs": WAYS}, {})
  )
  episodes = _episodes("classes")
  params = named.init(RNG, episodes.support.inputs[0])
  chex.assert_trees_all_close(
    jax.jit(unnamed.meta_grad)(params, episodes, RNG),
    jax.jit(named.meta_grad)(params, episodes, RNG),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ("loss_fn", "kind"),
  [
    (cross_entropy, "classes"),
    (accuracy, "classes"),
    (mean_squared_error, "numbers"),
    (lambda p, t: jnp.abs(p - t).mean(), "numbers"),
  ],
)
def test_a_loss_over_real_examples(loss_fn, kind):
  batch = jax.tree.map(lambda x: x[0], _episodes(kind).query)
  predictions = np.random.default_rng(1).normal(size=(QUERY, WAYS))
  mask = np.array([True, False, True, True, False])
  found = over_examples(loss_fn, predictions, batch.targets, mask)
  expected = loss_fn(predictions[mask], batch.targets[mask])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_accuracy_by_presentation_does_not_count_padding():
  labels = jnp.array([0, 1, 0, 0, 1])
  mask = jnp.array([True, True, False, True, False])
  logits = jax.nn.one_hot(jnp.array([0, 0, 1, 0, 0]), 2)
  found = accuracy_by_presentation(logits, labels, mask)
  np.testing.assert_allclose(found[:2], [0.5, 1.0])
