"""Embedding learners against the same in numpy float64."""

import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from metajax.learners import (
  embedding,
  nearest_mean,
  prototypical,
  ridge,
  ridge_regression,
)
from metajax.losses import accuracy, cross_entropy
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
TASKS, WAYS, INPUTS, STRENGTH = 3, 3, 4, 0.5
MODEL = MLP(5, (6,))
HEADS = {"nearest_mean": nearest_mean(WAYS), "ridge": ridge(WAYS, STRENGTH)}


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _draw_episodes(draw):
  def batch(n):
    x = draw.normal(size=(TASKS, n, INPUTS))
    y = np.tile(np.arange(n) % WAYS, (TASKS, 1))
    return Batch(x, draw.permuted(y, axis=1))

  return Episode(batch(7), batch(8))


def _draw_params(draw):
  shapes = jax.eval_shape(MODEL.init, RNG, np.zeros((1, INPUTS)))
  return jax.tree.map(lambda s: draw.normal(size=s.shape), shapes)


EPISODES = _draw_episodes(np.random.default_rng(0))
PARAMS = _draw_params(np.random.default_rng(1))


def _task(t):
  return jax.tree.map(lambda x: x[t], EPISODES)


@functools.cache
def _compiled(head="nearest_mean", normalize=False):
  """Returns a learner, its `meta_grad` and its solution of a task."""
  learner = embedding(
    MODEL,
    HEADS[head],
    cross_entropy,
    normalize=normalize,
    metrics={"accuracy": accuracy, "peak": lambda p, _: p[0].max()},
  )

  @jax.jit
  def solve(params, support, inputs):
    return learner.predict(learner.adapt(params, support, RNG), inputs)

  return learner, jax.jit(learner.meta_grad), solve


variants = pytest.mark.parametrize(
  ("head", "normalize"), [("nearest_mean", False), ("ridge", True)]
)


# --- The same in numpy. ---


def _features(params, inputs, normalize):
  first, last = (params["params"][f"Dense_{i}"] for i in (0, 1))
  hidden = np.maximum(inputs @ first["kernel"] + first["bias"], 0)
  features = hidden @ last["kernel"] + last["bias"]
  if normalize:
    features = features / np.linalg.norm(features, axis=-1, keepdims=True)
  return features


def _by_distance(support, labels, query):
  means = np.stack([support[labels == c].mean(0) for c in range(WAYS)])
  return -((query[:, None] - means) ** 2).sum(-1)


def _by_regression(support, labels, query):
  """The normal equations of features and a constant, which is free."""
  x, ones = np.c_[support, np.ones(len(support))], np.ones((len(query), 1))
  penalty = STRENGTH * np.diag([1.0] * support.shape[1] + [0.0])
  weights = np.linalg.solve(x.T @ x + penalty, x.T @ np.eye(WAYS)[labels])
  return np.c_[query, ones] @ weights


SOLUTIONS = {"nearest_mean": _by_distance, "ridge": _by_regression}


def _predictions(head, normalize, params, task):
  support = _features(params, task.support.inputs, normalize)
  query = _features(params, task.query.inputs, normalize)
  return SOLUTIONS[head](support, task.support.targets, query)


def _loss(head, normalize, params):
  losses = []
  for t in range(TASKS):
    log_p = scipy.special.log_softmax(
      _predictions(head, normalize, params, _task(t)), axis=-1
    )
    labels = EPISODES.query.targets[t]
    losses.append(-log_p[np.arange(len(labels)), labels].mean())
  return np.mean(losses)


def _differences(loss, params, h=1e-6):
  """Central ones, entry by entry and array by array."""
  leaves, treedef = jax.tree.flatten(params)

  def nudged(i, k, step):
    moved = [leaf.copy() for leaf in leaves]
    moved[i].flat[k] += step
    return loss(jax.tree.unflatten(treedef, moved))

  return np.array(
    [
      (nudged(i, k, h) - nudged(i, k, -h)) / (2 * h)
      for i, leaf in enumerate(leaves)
      for k in range(leaf.size)
    ]
  )


def _flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@variants
def test_meta_gradient_equals_finite_differences_of_the_loss_in_numpy(
  head, normalize
):
  _, meta_grad, _ = _compiled(head, normalize)
  grads, metrics = meta_grad(PARAMS, EPISODES, RNG)
  expected = _loss(head, normalize, PARAMS)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-10)
  differences = _differences(functools.partial(_loss, head, normalize), PARAMS)
  np.testing.assert_allclose(_flat(grads), differences, rtol=1e-6, atol=1e-8)
  assert np.abs(differences).max() > 0.01


# --- What is predicted. ---


@variants
def test_prediction_is_the_heads_on_the_embedding(head, normalize):
  _, _, solve = _compiled(head, normalize)
  task = _task(0)
  found = solve(PARAMS, task.support, task.query.inputs)
  expected = _predictions(head, normalize, PARAMS, task)
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_predictions_from_normalised_features_do_not_depend_on_their_scale():
  """Each example's features have another."""
  task = _task(1)

  def apply(params, x):
    scales = jnp.exp(x @ params["log_scales"])
    return scales[:, None] * MODEL.apply(params["model"], x)

  def predictions(normalize):
    model = SimpleNamespace(init=None, apply=apply)
    learner = embedding(
      model, nearest_mean(WAYS), cross_entropy, normalize=normalize
    )

    @jax.jit
    def solve(log_scales):
      params = {"model": PARAMS, "log_scales": log_scales}
      adapted = learner.adapt(params, task.support, RNG)
      return learner.predict(adapted, task.query.inputs)

    return solve(np.zeros(INPUTS)), solve(np.arange(INPUTS) / 2)

  plain, scaled = predictions(normalize=True)
  np.testing.assert_allclose(scaled, plain, rtol=1e-9, atol=1e-11)
  plain, scaled = predictions(normalize=False)
  assert np.abs(scaled - plain).max() > 1


def test_features_of_zeros_have_finite_gradients():
  """In float32, of features that are the parameters themselves."""
  table = SimpleNamespace(init=None, apply=lambda params, rows: params[rows])
  learner = embedding(table, nearest_mean(WAYS), cross_entropy, normalize=True)
  params = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
  params[[0, 7]] = 0
  rows, labels = np.arange(12)[None], np.arange(12)[None] % WAYS
  episodes = Episode(
    Batch(rows[:, :6], labels[:, :6]), Batch(rows[:, 6:], labels[:, 6:])
  )
  meta_grad = jax.jit(learner.meta_grad)
  grads, _ = meta_grad(params, episodes, RNG)
  assert grads.dtype == np.float32
  assert np.isfinite(grads).all()
  assert (np.abs(grads).max(axis=1) > 0).all()
  grads, metrics = meta_grad(np.zeros_like(params), episodes, RNG)
  assert np.isfinite(grads).all()
  np.testing.assert_allclose(metrics["loss"], np.log(WAYS), rtol=1e-6)


# --- A chunk of tasks. ---


def test_a_chunk_is_the_mean_of_its_tasks():
  learner, meta_grad, _ = _compiled()

  @jax.jit
  @jax.value_and_grad
  def solve(params, task):
    adapted = learner.adapt(params, task.support, RNG)
    predictions = learner.predict(adapted, task.query.inputs)
    return cross_entropy(predictions, task.query.targets)

  alone = [solve(PARAMS, _task(t)) for t in range(TASKS)]
  loss, grads = jax.tree.map(lambda *x: np.mean(x, axis=0), *alone)
  found, metrics = meta_grad(PARAMS, EPISODES, RNG)
  chex.assert_trees_all_close(found, grads, rtol=1e-10, atol=1e-13)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-12)


def test_compiled_equals_uncompiled():
  """Of one layer, as each operation is compiled by itself."""
  linear = SimpleNamespace(init=None, apply=lambda w, inputs: inputs @ w)
  learner = embedding(linear, nearest_mean(WAYS), cross_entropy)

  def solve(w, task):
    adapted = learner.adapt(w, task.support, RNG)
    return learner.predict(adapted, task.query.inputs)

  w, task = jnp.ones((INPUTS, 2)), jax.tree.map(jnp.asarray, _task(0))
  np.testing.assert_allclose(
    jax.jit(solve)(w, task), solve(w, task), rtol=1e-10, atol=1e-13
  )


def test_reported_scores_are_those_of_the_predictions():
  _, meta_grad, solve = _compiled()
  losses, shares, peaks = [], [], []
  for t in range(TASKS):
    task = _task(t)
    logits = np.asarray(solve(PARAMS, task.support, task.query.inputs))
    log_p = scipy.special.log_softmax(logits, axis=-1)
    labels = task.query.targets
    losses.append(-log_p[np.arange(len(labels)), labels].mean())
    shares.append((logits.argmax(-1) == labels).mean())
    peaks.append(logits[0].max())
  _, metrics = meta_grad(PARAMS, EPISODES, RNG)
  assert set(metrics) == {"loss", "accuracy", "peak"}
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-10)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(shares), rtol=1e-12)
  np.testing.assert_allclose(metrics["peak"], np.mean(peaks), rtol=1e-10)
  assert 0 < np.mean(shares) < 1


def test_only_the_supports_labels_influence_predictions():
  """By what `meta_grad` reports of them."""
  _, meta_grad, _ = _compiled()
  _, before = meta_grad(PARAMS, EPISODES, RNG)

  query, support = EPISODES.query, EPISODES.support
  query = query._replace(targets=(query.targets + 1) % WAYS)
  _, after = meta_grad(PARAMS, EPISODES._replace(query=query), RNG)
  assert after["peak"] == before["peak"]
  assert abs(after["loss"] - before["loss"]) > 1e-3
  turned = support._replace(targets=support.targets[:, ::-1])
  _, after = meta_grad(PARAMS, EPISODES._replace(support=turned), RNG)
  assert abs(after["peak"] - before["peak"]) > 1e-3
  # Classes have no names: with other labels for both, nothing changes.
  support = support._replace(targets=(support.targets + 1) % WAYS)
  _, after = meta_grad(PARAMS, Episode(support, query), RNG)
  np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-12)


def test_meta_parameters_are_the_embeddings():
  learner, meta_grad, _ = _compiled()
  found = learner.init(RNG, EPISODES.support.inputs[0])
  expected = MODEL.init(RNG, EPISODES.support.inputs[0])
  chex.assert_trees_all_equal(found, expected)
  grads, _ = meta_grad(PARAMS, EPISODES, RNG)
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, PARAMS)


@pytest.mark.slow
def test_the_head_is_fitted_to_the_prepared_support():
  """In adaptation and in the meta-gradient."""

  def copies(rng, support):
    noise = jax.random.normal(rng, (3, *support.inputs.shape))
    inputs = (support.inputs + 0.1 * noise).reshape(-1, INPUTS)
    return Batch(inputs, jnp.tile(support.targets, 3))

  plain = embedding(MODEL, HEADS["ridge"], cross_entropy)
  learner = embedding(MODEL, HEADS["ridge"], cross_entropy, prepare=copies)
  support, query = _task(0)
  found = learner.adapt(PARAMS, support, RNG)
  expected = plain.adapt(PARAMS, copies(RNG, support), RNG)
  chex.assert_trees_all_close(found, expected, rtol=1e-12)
  one = jax.tree.map(lambda x: x[None], Episode(support, query))
  key, _ = jax.random.split(jax.random.split(RNG, 1)[0])
  prepared = one._replace(
    support=jax.tree.map(lambda x: x[None], copies(key, support))
  )
  grads, _ = learner.meta_grad(PARAMS, one, RNG)
  others, _ = plain.meta_grad(PARAMS, prepared, RNG)
  chex.assert_trees_all_close(grads, others, rtol=1e-9)


@pytest.mark.parametrize("make", [prototypical, ridge_regression])
def test_a_model_that_returns_more_than_features_is_refused(make):
  two = SimpleNamespace(init=lambda *_: {}, apply=lambda _, x: {"x": x, "y": x})
  learner = make(two, cross_entropy)
  support = Batch(jnp.ones((2, 3)), jnp.arange(2))
  with pytest.raises(ValueError, match="^a head: the model's output must"):
    params = learner.init(jax.random.key(0), support.inputs)
    learner.adapt(params, support, jax.random.key(0))
