"""Learned averages and ensembles: gradients, pools and weights by hand."""

import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.flatten_util import ravel_pytree

from metajax.aggregation import (
  average_probabilities,
  log_pool,
  posterior_weights,
  weighted_average,
)
from metajax.learners import (
  REGISTRY,
  learned_average,
  learned_ensemble,
  maml,
)
from metajax.losses import accuracy, cross_entropy, mean_squared_error
from metajax.types import Batch, Episode, State

RNG = jax.random.key(0)
TASKS, SUPPORT, QUERY, FEATURES, HIDDEN, MEMBERS = 3, 6, 7, 2, 4, 3


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _network_apply(params, inputs):
  return jnp.tanh(jnp.tanh(inputs @ params["u"]) @ params["v"]) @ params["head"]


# Members are drawn below, in numpy.
NETWORK = SimpleNamespace(init=None, apply=_network_apply)
LINEAR = SimpleNamespace(init=None, apply=lambda w, inputs: inputs @ w)


def _members(size=MEMBERS, outputs=1):
  """A stack of unlike models."""
  draw = np.random.default_rng(7).normal
  shapes = {
    "u": (FEATURES, HIDDEN),
    "v": (HIDDEN, HIDDEN),
    "head": (HIDDEN, outputs),
  }
  return {
    name: jnp.asarray(draw(size=(size, *shape)))
    for name, shape in shapes.items()
  }


def _member(members, m):
  return jax.tree.map(lambda leaf: leaf[m], members)


def _episodes(seed=0):
  """Tasks [TASKS, n, ...] of noise: nothing about them is special."""
  draw = np.random.default_rng(seed).normal

  def batch(n):
    x, y = draw(size=(TASKS, n, FEATURES)), draw(size=(TASKS, n, 1))
    return Batch(jnp.asarray(x), jnp.asarray(y))

  return Episode(batch(SUPPORT), batch(QUERY))


def _task(episodes, t=0):
  return jax.tree.map(lambda leaf: leaf[t], episodes)


def _classes(seed=0):
  """A task of three classes."""
  draw = np.random.default_rng(seed)

  def batch(n):
    x, y = draw.normal(size=(n, FEATURES)), draw.integers(0, 3, size=n)
    return Batch(jnp.asarray(x), jnp.asarray(y))

  return Episode(batch(SUPPORT), batch(QUERY))


def _random_like(tree, seed=1):
  draw = np.random.default_rng(seed).normal
  return jax.tree.map(lambda leaf: jnp.asarray(draw(size=leaf.shape)), tree)


def _central_differences(loss, params, h=1e-5):
  """Of a loss of a tree; the error is about 1e-10."""
  flat, unravel = ravel_pytree(params)
  flat = np.asarray(flat)
  return np.array(
    [
      (loss(unravel(flat + step)) - loss(unravel(flat - step))) / (2 * h)
      for step in h * np.eye(flat.size)
    ]
  )


@functools.cache
def _learner(name="maml"):
  """Returns a learner of one step, and its `adapt`, compiled once."""
  learner = REGISTRY[name](
    NETWORK, mean_squared_error, optax.sgd(0.2), num_steps=1
  )
  return learner, jax.jit(learner.adapt)


# --- A learned average. ---


def _average_by_hand(logits, members, group_of):
  """The array at each path is mixed by the weights of its group."""
  return {
    name: np.tensordot(
      scipy.special.softmax(logits[group_of(f"['{name}']")]),
      np.asarray(leaf),
      axes=1,
    )
    for name, leaf in members.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  "group_of, names",
  [
    (None, ["all"]),
    (lambda path: path, ["['head']", "['u']", "['v']"]),
  ],
  ids=["all", "arrays"],
)
def test_meta_gradient_of_an_average_equals_finite_differences(group_of, names):
  """Of MAML's query loss from the explicit average, task by task."""
  (learner, _), members, episodes = _learner(), _members(), _episodes()
  averaged = learned_average(learner, members, group_of)
  logits = averaged.init(RNG, episodes.support.inputs[0])
  assert sorted(logits) == names
  chex.assert_trees_all_equal(logits, {name: np.zeros(3) for name in names})
  logits = _random_like(logits)
  grads, metrics = jax.jit(averaged.meta_grad)(logits, episodes, RNG)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  def query_losses(theta, episode):
    phi = learner.adapt(theta, episode.support, RNG)
    predictions = _network_apply(phi, episode.query.inputs)
    return jnp.mean((predictions - episode.query.targets) ** 2)

  def composed(logits):
    theta = _average_by_hand(logits, members, group_of or (lambda _: "all"))
    return np.mean(query_losses(theta, episodes))

  np.testing.assert_allclose(metrics["loss"], composed(logits), rtol=1e-10)
  differences = _central_differences(composed, logits)
  np.testing.assert_allclose(
    ravel_pytree(grads)[0], differences, rtol=1e-6, atol=1e-8
  )
  assert np.abs(differences).min() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fomaml", "reptile"])
def test_any_learners_estimate_is_passed_on_to_the_weights(name):
  """d theta_g / d w_g = softmax(w_g)_m (theta_m - theta)_g."""
  groups = {"u": "hidden", "v": "hidden", "head": "head"}

  def group_of(path):
    return groups[path.strip("[']")]

  (learner, _), members, episodes = _learner(name), _members(), _episodes()
  averaged = learned_average(learner, members, group_of)
  start = averaged.init(RNG, episodes.support.inputs[0])
  assert sorted(start) == ["head", "hidden"]
  logits = _random_like(start)
  theta = _average_by_hand(logits, members, group_of)
  g, expected_metrics = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  expected = {group: np.zeros(MEMBERS) for group in logits}
  for key, group in groups.items():
    weights = scipy.special.softmax(logits[group])
    along = ((members[key] - theta[key]) * g[key]).sum(axis=(1, 2))
    expected[group] += weights * along
  grads, metrics = jax.jit(averaged.meta_grad)(logits, episodes, RNG)
  chex.assert_trees_all_close(grads, expected, rtol=1e-9, atol=1e-12)
  chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-10)


def test_equal_logits_adapt_from_the_average_of_the_members():
  (learner, adapt), members, task = _learner(), _members(), _task(_episodes())
  averaged = learned_average(learner, members, lambda path: path)
  logits = averaged.init(RNG, task.support.inputs)
  expected = adapt(weighted_average(members), task.support, RNG)
  # What logits have in common does not matter.
  shifted = jax.tree.map(lambda x: x + 5.0, logits)
  adapt_average = jax.jit(averaged.adapt)
  for equal in (logits, shifted):
    found = adapt_average(equal, task.support, RNG)
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)
  np.testing.assert_array_equal(
    averaged.predict(expected, task.query.inputs),
    learner.predict(expected, task.query.inputs),
  )


def test_average_of_one_member_is_that_member_whatever_its_logit():
  (learner, adapt), members, task = _learner(), _members(1), _task(_episodes())
  averaged = learned_average(learner, members)
  chex.assert_trees_all_close(
    jax.jit(averaged.adapt)({"all": jnp.array([3.0])}, task.support, RNG),
    adapt(_member(members, 0), task.support, RNG),
    rtol=1e-10,
  )


@pytest.mark.slow
def test_state_of_the_members_is_averaged_and_gets_no_gradient():
  """The same gradient as with the averaged scale written into the model."""

  def model(scale):
    def apply(params, x):
      factor = params["norm"].value["scale"] if scale is None else scale
      return x @ params["w"] * factor

    return SimpleNamespace(init=None, apply=apply)

  def build(scale, **state):
    learner = maml(model(scale), mean_squared_error, optax.sgd(0.1), 1)
    return learned_average(learner, members | state)

  w = np.random.default_rng(0).normal(size=(3, FEATURES, 1))
  members, episodes = {"w": jnp.asarray(w)}, _episodes()
  statistics = {"scale": jnp.array([1.0, 2.0, 6.0]), "n": jnp.arange(3)}
  found, expected = build(None, norm=State(statistics)), build(3.0)
  logits = {"all": jnp.zeros(3)}
  adapted = found.adapt(logits, _task(episodes).support, RNG)
  np.testing.assert_allclose(adapted["norm"].value["scale"], 3)
  assert adapted["norm"].value["n"] == 1
  chex.assert_trees_all_close(
    found.meta_grad(logits, episodes, RNG),
    expected.meta_grad(logits, episodes, RNG),
    rtol=1e-10,
  )


# --- A learned ensemble. ---


def _log_of_mean(p, weights):
  return np.log(np.tensordot(weights, p, axes=1))


def _geometric_mean(p, weights):
  product = np.exp(np.tensordot(weights, np.log(p), axes=1))
  return np.log(product / product.sum(axis=-1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize(
  "pool, by_hand",
  [(average_probabilities, _log_of_mean), (log_pool, _geometric_mean)],
)
def test_ensemble_pools_the_adapted_members_by_support_loss(pool, by_hand):
  """Equal weights at first, and by the formula later, on classes."""
  members, task = _members(outputs=3), _classes()
  learner = maml(NETWORK, cross_entropy, optax.sgd(0.2), 1)
  ensemble = learned_ensemble(learner, members, pool, cross_entropy)

  @jax.jit
  def solve(meta_params):
    adapted = ensemble.adapt(meta_params, task.support, RNG)
    return adapted, ensemble.predict(adapted, task.query.inputs)

  adapt = jax.jit(learner.adapt)
  adapted = [
    adapt(_member(members, m), task.support, RNG) for m in range(MEMBERS)
  ]
  support, query = (
    np.stack(
      [scipy.special.softmax(_network_apply(p, x), axis=-1) for p in adapted]
    )
    for x in (task.support.inputs, task.query.inputs)
  )
  rows = np.arange(SUPPORT)
  losses = -np.log(support[:, rows, task.support.targets]).mean(axis=1)
  start = ensemble.init(RNG, task.support.inputs)
  chex.assert_trees_all_equal(start, {"logits": np.zeros(3), "beta": 0.0})
  later = {"logits": jnp.array([0.3, -0.5, 1.0]), "beta": jnp.array(2.5)}
  for meta_params, weights in (
    (start, np.full(MEMBERS, 1 / MEMBERS)),
    (later, scipy.special.softmax(later["logits"] - 2.5 * losses)),
  ):
    found, predictions = solve(meta_params)
    np.testing.assert_allclose(found["weights"], weights, rtol=1e-9)
    np.testing.assert_allclose(predictions, by_hand(query, weights), rtol=1e-8)
    for m, expected in enumerate(adapted):
      chex.assert_trees_all_close(
        _member(found["members"], m), expected, rtol=1e-9
      )


def test_new_ensemble_in_regression_is_the_mean_prediction():
  (learner, adapt), members, task = _learner(), _members(), _task(_episodes())
  ensemble = learned_ensemble(
    learner, members, weighted_average, mean_squared_error
  )
  predictions = [
    _network_apply(
      adapt(_member(members, m), task.support, RNG), task.query.inputs
    )
    for m in range(MEMBERS)
  ]

  @jax.jit
  def solve(task):
    start = ensemble.init(RNG, task.support.inputs)
    adapted = ensemble.adapt(start, task.support, RNG)
    return ensemble.predict(adapted, task.query.inputs)

  np.testing.assert_allclose(
    solve(task), np.mean(predictions, axis=0), rtol=1e-10
  )


@pytest.mark.slow
def test_members_that_do_not_adapt_have_their_posterior_at_beta_n():
  """A Gaussian likelihood; the logits are the log of the prior."""
  sigma, prior = 0.7, np.array([1.0, 2.0, 5.0])
  members, task = _members(), _task(_episodes())

  def log_likelihoods(predictions, targets):
    return -(((predictions - targets) / sigma) ** 2) / 2 - np.log(
      sigma * np.sqrt(2 * np.pi)
    )

  def loss(predictions, targets):
    return -jnp.mean(log_likelihoods(predictions, targets))

  learner = maml(NETWORK, loss, optax.sgd(0.2), num_steps=0)
  ensemble = learned_ensemble(learner, members, weighted_average, loss)
  x, y, _ = task.support
  by_model = np.stack(
    [
      log_likelihoods(_network_apply(_member(members, m), x), y)[:, 0]
      for m in range(MEMBERS)
    ]
  )
  adapt = jax.jit(ensemble.adapt)
  for logits, weights in ((np.zeros(3), None), (np.log(prior), prior)):
    meta_params = {
      "logits": jnp.asarray(logits),
      "beta": jnp.array(float(SUPPORT)),
    }
    found = adapt(meta_params, task.support, RNG)["weights"]
    expected = posterior_weights(jnp.asarray(by_model), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_meta_gradient_of_an_ensemble_equals_finite_differences():
  episodes = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), *(_classes(seed) for seed in range(3))
  )
  ensemble = learned_ensemble(
    maml(NETWORK, cross_entropy, optax.sgd(0.2), 1),
    _members(outputs=3),
    average_probabilities,
    cross_entropy,
    metrics={"accuracy": accuracy},
  )
  start = ensemble.init(RNG, episodes.support.inputs[0])
  meta_params = _random_like(start)

  def query_scores(meta_params, episode):
    adapted = ensemble.adapt(meta_params, episode.support, RNG)
    log_p = ensemble.predict(adapted, episode.query.inputs)
    labels = episode.query.targets
    right = jnp.argmax(log_p, axis=-1) == labels
    return -log_p[jnp.arange(QUERY), labels].mean(), right.mean()

  scores = jax.jit(jax.vmap(query_scores, in_axes=(None, 0)))
  grads, metrics = jax.jit(ensemble.meta_grad)(meta_params, episodes, RNG)
  differences = _central_differences(
    lambda p: scores(p, episodes)[0].mean(), meta_params
  )
  np.testing.assert_allclose(
    ravel_pytree(grads)[0], differences, rtol=1e-6, atol=1e-8
  )
  loss, share = (x.mean() for x in scores(meta_params, episodes))
  assert set(metrics) == {"loss", "accuracy"}
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)
  np.testing.assert_allclose(metrics["accuracy"], share, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("right", ["the same in all tasks", "the task's own"])
def test_outer_steps_learn_which_member_to_trust(right):
  """Of linear models that do not adapt; targets come from one of them."""
  tasks, draw = 64, np.random.default_rng(3)
  members = jnp.asarray(draw.normal(size=(MEMBERS, FEATURES, 1)))
  own = draw.integers(0, MEMBERS, size=tasks)
  member = np.full(tasks, 1) if right == "the same in all tasks" else own

  def batch(n):
    x = draw.normal(size=(tasks, n, FEATURES))
    y = x @ members[member] + 0.1 * draw.normal(size=(tasks, n, 1))
    return Batch(jnp.asarray(x), jnp.asarray(y))

  # The last half of the tasks is not learned from.
  episodes = Episode(batch(SUPPORT), batch(QUERY))
  train, test = (
    jax.tree.map(lambda leaf, part=part: leaf[part], episodes)
    for part in (slice(32), slice(32, None))
  )
  learner = maml(LINEAR, mean_squared_error, optax.sgd(0.1), 0)
  ensemble = learned_ensemble(
    learner, members, weighted_average, mean_squared_error
  )
  optimizer = optax.adam(0.1)

  @jax.jit
  def learn(meta_params):
    def step(carry, _):
      meta_params, state = carry
      grads, _ = ensemble.meta_grad(meta_params, train, RNG)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(meta_params, updates), state), None

    start = meta_params, optimizer.init(meta_params)
    (after, _), _ = jax.lax.scan(step, start, length=50)
    losses = [
      ensemble.meta_grad(p, test, RNG)[1]["loss"] for p in (meta_params, after)
    ]
    return after, losses

  learned, (before, after) = learn(ensemble.init(RNG, train.support.inputs[0]))
  assert after < 0.5 * before
  assert learned["beta"] > 0.1
  if right == "the same in all tasks":
    assert jnp.argmax(learned["logits"]) == 1


# --- What is refused. ---


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda u: u.at[1].set(jnp.nan), "model 1 is not finite"),
    (lambda u: u[:2], "the first axes, the models, must be equal"),
    (lambda u: u.astype(int), "only floating point"),
  ],
)
def test_members_that_are_no_stack_are_named(change, message):
  members = _members()
  members["u"] = change(members["u"])
  learner, _ = _learner()
  with pytest.raises(ValueError, match=message):
    learned_average(learner, members)
  with pytest.raises(ValueError, match=message):
    learned_ensemble(learner, members, weighted_average, mean_squared_error)


# --- What programs hold. ---


def _text_size(learner):
  """Characters of the program of a meta-gradient, which is not run."""
  params = jax.eval_shape(learner.init, RNG, jnp.zeros((SUPPORT, FEATURES)))
  episodes = jax.eval_shape(_episodes)
  meta_grad = jax.jit(lambda learner, *given: learner.meta_grad(*given))
  lowered = meta_grad.lower(learner.carried(), params, episodes, RNG)
  return len(lowered.as_text())


@pytest.mark.slow
@pytest.mark.parametrize(
  "build",
  [
    lambda members: learned_average(_learner()[0], members),
    lambda members: learned_ensemble(
      _learner()[0], members, weighted_average, mean_squared_error
    ),
  ],
)
def test_members_are_no_constants_of_programs(build):
  """Each number of a constant would be 16 digits of the program's text."""
  few, many = (build(_members(n)) for n in (2, 200))
  numbers = sum(x.size for x in jax.tree.leaves(many.carried().adapt))
  assert numbers > 200 * FEATURES * HIDDEN
  assert _text_size(many) - _text_size(few) < 2 * numbers


def test_padding_of_a_support_says_nothing_of_the_members():
  members, task = _members(), _task(_episodes())
  ensemble = learned_ensemble(
    _learner()[0], members, weighted_average, mean_squared_error
  )
  start = ensemble.init(RNG, task.support.inputs) | {"beta": jnp.array(2.0)}
  padded = Batch(
    *(jnp.concatenate([x, 0 * x[:2] + 9]) for x in task.support[:2]),
    jnp.arange(SUPPORT + 2) < SUPPORT,
  )
  adapt = jax.jit(ensemble.adapt)
  chex.assert_trees_all_close(
    adapt(start, padded, RNG), adapt(start, task.support, RNG), rtol=1e-10
  )
