"""What every meta-learner of the registry owes, on regression and on classes.

A new entry of `metajax.learners.REGISTRY` is covered as it is. If its
meta-gradient is the exact gradient of the "loss" that it reports, add its name
to `EXACT`.
"""

import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import CLASSIFIERS, REGISTRY, TRACED_STEPS
from metajax.learners.registry import register_installed
from metajax.losses import accuracy, cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.training import TrainState, checkpoint
from metajax.types import (
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Params,
  TaskFamily,
)

# Learners whose meta_grad is the gradient of the very "loss" it reports.
EXACT = [
  "maml",
  "maml_plus_plus",
  "anil",
  "boil",
  "meta_sgd",
  "meta_curvature",
  "cavia",
  "prototypical",
  "cosine",
  "svm",
  "ridge",
  "recurrent",
]

# What a learner is given here beside the rest.
OPTIONS = {
  "recurrent": {"units": 16},
  # The Hessians here have eigenvalues from -9 on: with it the equations are
  # positive definite, and well conditioned; without it rounding decides what is
  # solved.
  "imaml": {"damping": 32.0},
  # The network here has none.
  "maml_plus_plus": {"step_normalization": False},
  # What is reported for nothing is not of the support alone.
  "reptile": {"held_out_report": True},
}

# Those of the angles between features, and of their margins. As the biases of a
# network are 0 at first, inputs of one sign have one direction: angles are
# equal, and more examples are on margins than a derivative can keep there.
DIRECTED = ["cosine", "svm"]

# Those that are no other one with other arguments.
register_installed()  # Learners of other packages are tested, too.
DISTINCT = [n for n in REGISTRY if n not in ("fomaml", "anil", "boil")]

# Those that differentiate through an inner loop.
DIFFERENTIATED = [
  "maml",
  "maml_plus_plus",
  "meta_sgd",
  "meta_curvature",
  "cavia",
]

# Those that read the support's labels in their forward pass, without a step.
ENCODING = ["prototypical", "cosine", "svm", "ridge", "recurrent"]

RNG = jax.random.key(0)
OPTIMIZER = optax.adam(0.01)
WAYS = 3
CHUNK, TRAINING_STEPS, EVALUATION_TASKS = 3, 200, 2000


class Setting(NamedTuple):
  """What a learner is tried on; episodes are drawn once for all learners."""

  tasks: TaskFamily
  model: MLP
  loss_fn: LossFn
  inner_rate: float
  metric: str
  score: LossFn


class Case(NamedTuple):
  """A learner in a setting, and what is compiled once for its tests."""

  name: str
  setting: Setting
  build: Callable[..., MetaLearner]
  learner: MetaLearner
  params: Params
  episodes: Episode  # [CHUNK, ...]
  meta_grad: Callable  # compiled
  solve: Callable  # compiled: (params, episode, rng) -> query predictions
  solve_all: Callable  # compiled: (params, episodes) -> predictions


def _blobs(rng) -> Episode:
  """Three blobs on a line, 2 + 3 points each; the task is their labels."""
  label_key, noise_key = jax.random.split(rng)
  assignments = jnp.array(list(itertools.permutations(range(WAYS))))
  classes = jnp.arange(5 * WAYS) % WAYS
  noise = jax.random.normal(noise_key, (5 * WAYS, 1))
  inputs = 2.0 * (classes[:, None] - 1) + 0.3 * noise
  labels = assignments[jax.random.randint(label_key, (), 0, len(assignments))]
  targets = labels[classes]
  split = 2 * WAYS
  return Episode(
    Batch(inputs[:split], targets[:split]),
    Batch(inputs[split:], targets[split:]),
  )


SETTINGS = {
  "regression": Setting(
    sinusoid(6, 9),
    MLP(1, (24,)),
    mean_squared_error,
    0.005,
    "mse",
    mean_squared_error,
  ),
  "classification": Setting(
    _blobs, MLP(WAYS, (24,)), cross_entropy, 0.3, "accuracy", accuracy
  ),
}


def _with_offsets(model) -> SimpleNamespace:
  """Lets a network begin with biases."""

  def init(rng, inputs):
    def moved(path, x):
      if path[-1].key != "bias":
        return x
      return x + jax.random.normal(jax.random.fold_in(rng, x.size), x.shape)

    return jax.tree.map_with_path(moved, model.init(rng, inputs))

  return SimpleNamespace(init=init, apply=model.apply)


@functools.cache
def _episodes(setting: str, num_tasks: int, seed: int) -> Episode:
  keys = jax.random.split(jax.random.key(seed), num_tasks)
  episodes = jax.jit(jax.vmap(SETTINGS[setting].tasks))(keys)
  return jax.tree.map(np.asarray, episodes)


def _cases(names=tuple(REGISTRY), settings=tuple(SETTINGS)):
  return [
    (name, setting)
    for name, setting in itertools.product(names, settings)
    if name not in CLASSIFIERS or setting == "classification"
  ]


@pytest.fixture(scope="module", params=_cases(), ids="-".join)
def case(request) -> Case:
  name, setting_name = request.param
  setting = SETTINGS[setting_name]
  build = functools.partial(
    REGISTRY[name],
    _with_offsets(setting.model) if name in DIRECTED else setting.model,
    setting.loss_fn,
    optax.sgd(setting.inner_rate),
    2,
    metrics={setting.metric: setting.score},
    **OPTIONS.get(name, {}),
  )
  learner = build()
  episodes = _episodes(setting_name, CHUNK, seed=1)
  return Case(
    name,
    setting,
    build,
    learner,
    jax.jit(learner.init)(RNG, episodes.support.inputs[0]),
    episodes,
    jax.jit(learner.meta_grad),
    jax.jit(functools.partial(_solve, learner)),
    _solver_of_many(learner),
  )


def _solve(learner, params, episode, rng):
  task_params = learner.adapt(params, episode.support, rng)
  return learner.predict(task_params, episode.query.inputs)


def _solver_of_many(learner):
  solve = jax.vmap(functools.partial(_solve, learner), in_axes=(None, 0, 0))

  @jax.jit
  def solve_all(params, episodes):
    num_tasks = len(episodes.query.inputs)
    return solve(params, episodes, jax.random.split(RNG, num_tasks))

  return solve_all


def _episodes_of(case: Case, num_tasks: int, seed: int) -> Episode:
  name = next(k for k, v in SETTINGS.items() if v is case.setting)
  return _episodes(name, num_tasks, seed)


def _task(episodes, i):
  return jax.tree.map(lambda x: x[i], episodes)


def only(**chosen):
  """Runs a test on some of the learners (names) and settings."""
  return pytest.mark.parametrize(
    "case",
    _cases(**chosen),
    ids="-".join,
    indirect=True,
    scope="module",
  )


def _needs_determinism(case: Case) -> None:
  """Where the key matters, a chunk's tasks have other keys than alone."""
  one, other = (
    case.meta_grad(case.params, case.episodes, jax.random.key(seed))
    for seed in (0, 1)
  )
  same = jax.tree.map(np.array_equal, one, other)
  if not all(jax.tree.leaves(same)):
    pytest.skip("a stochastic meta-gradient")


def _inner_product(a, b):
  leaves = zip(*map(jax.tree.leaves, (a, b)), strict=True)
  return sum(np.vdot(x, y) for x, y in leaves)


# Slow, since every operation is compiled by itself: one setting is enough, and
# one of the learners that are one function.
@pytest.mark.slow
@pytest.mark.parametrize(
  "case",
  _cases(DISTINCT, ["regression"])
  + _cases(sorted(CLASSIFIERS), ["classification"]),
  ids="-".join,
  indirect=True,
  scope="module",
)
def test_compiled_equals_uncompiled(case):
  with jax.disable_jit():
    plain = case.learner.meta_grad(case.params, case.episodes, RNG)
  compiled = case.meta_grad(case.params, case.episodes, RNG)
  chex.assert_trees_all_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_gradients_are_like_the_parameters_and_metrics_are_scalars(case):
  grads, metrics = case.meta_grad(case.params, case.episodes, RNG)
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, case.params)
  chex.assert_tree_all_finite(grads)
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-3
  assert {"loss", case.setting.metric} <= set(metrics)
  for value in metrics.values():
    assert value.shape == ()
    assert np.isfinite(value)


@pytest.mark.slow
def test_a_chunk_is_the_mean_of_its_tasks(case):
  _needs_determinism(case)
  alone = [
    case.meta_grad(case.params, _task(case.episodes, slice(i, i + 1)), RNG)
    for i in range(CHUNK)
  ]
  expected = jax.tree.map(lambda *x: np.mean(x, axis=0), *alone)
  found = case.meta_grad(case.params, case.episodes, RNG)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_reported_metric_is_that_of_the_adapted_predictions(case):
  _needs_determinism(case)
  scores = []
  for i in range(CHUNK):
    episode = _task(case.episodes, i)
    predictions = case.solve(case.params, episode, RNG)
    scores.append(case.setting.score(predictions, episode.query.targets))
  _, metrics = case.meta_grad(case.params, case.episodes, RNG)
  np.testing.assert_allclose(
    metrics[case.setting.metric], np.mean(scores), rtol=1e-4
  )


def test_same_key_same_result(case):
  chex.assert_trees_all_equal(
    case.meta_grad(case.params, case.episodes, RNG),
    case.meta_grad(case.params, case.episodes, RNG),
  )
  inputs = case.episodes.support.inputs[0]
  chex.assert_trees_all_equal(
    jax.jit(case.learner.init)(RNG, inputs), case.params
  )


def test_tasks_adapt_under_vmap_as_alone(case):
  keys = jax.random.split(RNG, CHUNK)
  alone = [
    case.solve(case.params, _task(case.episodes, i), keys[i])
    for i in range(CHUNK)
  ]
  together = case.solve_all(case.params, case.episodes)
  np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


@only(names=sorted(TRACED_STEPS), settings=["regression"])
def test_a_traced_number_of_steps_is_that_number(case):
  @jax.jit
  def solve(steps, params, episode):
    return _solve(case.build(num_eval_steps=steps), params, episode, RNG)

  episode = _task(case.episodes, 0)
  for steps in (0, 2):
    fixed = case.build(num_eval_steps=steps)
    np.testing.assert_allclose(
      solve(steps, case.params, episode),
      jax.jit(functools.partial(_solve, fixed))(case.params, episode, RNG),
      rtol=1e-5,
      atol=1e-6,
    )


# None of the ways of the inner loop knows anything of the loss.
@pytest.mark.parametrize("memory", ["plain", "remat", "nested"])
@only(names=DIFFERENTIATED, settings=["regression"])
def test_memory_changes_no_gradient(case, memory):
  other = jax.jit(case.build(memory=memory).meta_grad)
  chex.assert_trees_all_close(
    other(case.params, case.episodes, RNG),
    case.meta_grad(case.params, case.episodes, RNG),
    rtol=1e-5,
    atol=1e-6,
  )


def test_checkpoints_restore_every_bit(case, tmp_path):
  grads, _ = case.meta_grad(case.params, case.episodes, RNG)
  params, opt_state = _update(case.params, OPTIMIZER.init(case.params), grads)
  state = TrainState(jnp.int32(17), params, opt_state)
  checkpoint.save(checkpoint.open_checkpoints(tmp_path), state, {"best": 0.5})
  like = jax.tree.map(jnp.zeros_like, state)
  restored = checkpoint.restore(checkpoint.open_checkpoints(tmp_path), like)
  chex.assert_trees_all_equal(restored.state, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(restored.state, state)
  assert restored.notes == {"best": 0.5}


@pytest.mark.slow
@only(settings=["classification"])
def test_bfloat16_gradients_point_where_float32_gradients_do(case):
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), case.params)
  whole = jax.tree.map(lambda p: p.astype(jnp.float32), half)
  grads, metrics = case.meta_grad(half, case.episodes, RNG)
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, half)
  expected, expected_metrics = case.meta_grad(whole, case.episodes, RNG)
  grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
  # 8 bits of mantissa: an entry is off by some percent at most.
  lengths = np.sqrt(
    _inner_product(grads, grads) * _inner_product(expected, expected)
  )
  assert _inner_product(grads, expected) > 0.99 * lengths
  np.testing.assert_allclose(
    metrics["loss"], expected_metrics["loss"], rtol=0.1
  )


@only(names=EXACT)
def test_meta_gradient_equals_finite_differences_where_it_is_exact(case):
  """Along random directions, in float64 (trap 1)."""
  with jax.enable_x64(True):
    params, episodes = jax.tree.map(
      lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
      (case.params, case.episodes),
    )
    grads, _ = case.meta_grad(params, episodes, RNG)

    def loss(step, direction):
      moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
      return case.meta_grad(moved, episodes, RNG)[1]["loss"]

    draw = np.random.default_rng(0).normal
    for _ in range(3):
      direction = jax.tree.map(lambda p: draw(size=p.shape), params)
      # That a ReLU has its kink within these 2e-6 is unlikely, and the seed is
      # fixed.
      difference = (loss(1e-6, direction) - loss(-1e-6, direction)) / 2e-6
      np.testing.assert_allclose(
        _inner_product(grads, direction), difference, rtol=1e-6
      )


@jax.jit
def _update(params, opt_state, grads):
  updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


@pytest.fixture(scope="module")
def trained(case) -> Params:
  """Meta-parameters after 200 steps of Adam on chunks of 3 tasks."""
  episodes = _episodes_of(case, CHUNK * TRAINING_STEPS, seed=2)
  params, opt_state = case.params, OPTIMIZER.init(case.params)
  for step, key in enumerate(jax.random.split(RNG, TRAINING_STEPS)):
    chunk = _task(episodes, slice(CHUNK * step, CHUNK * (step + 1)))
    grads, _ = case.meta_grad(params, chunk, key)
    params, opt_state = _update(params, opt_state, grads)
  return params


def _accuracies(predictions, targets):
  """[tasks, n, ways], [tasks, n] -> [tasks]."""
  return np.mean(np.argmax(predictions, axis=-1) == targets, axis=-1)


def test_200_meta_steps_improve_what_is_learned_from_new_tasks(case, trained):
  episodes = _episodes_of(case, EVALUATION_TASKS, seed=3)
  losses = jax.vmap(case.setting.loss_fn)
  before, after = (
    np.asarray(losses(case.solve_all(params, episodes), episodes.query.targets))
    for params in (case.params, trained)
  )
  gains = before - after
  # The tasks are the same, so the gains are paired; 4 standard errors.
  assert gains.mean() > 4 * gains.std(ddof=1) / np.sqrt(EVALUATION_TASKS)


def _assert_chance(accuracies):
  """Values in [0, 1] of mean p have variance p (1 - p) at most: binomial."""
  p = 1 / WAYS
  bound = 4 * np.sqrt(p * (1 - p) / accuracies.size)
  assert abs(accuracies.mean() - p) < bound


@only(
  names=[n for n in REGISTRY if n not in ENCODING], settings=["classification"]
)
def test_accuracy_before_adaptation_is_chance(case, trained):
  """Classes are assigned to labels at random (trap 5)."""
  solve_all = _solver_of_many(case.build(num_eval_steps=0))
  episodes = _episodes_of(case, EVALUATION_TASKS, seed=3)
  reversed_labels = _with_support_labels(
    episodes, WAYS - 1 - episodes.support.targets
  )
  for params in (case.params, trained):
    predictions = np.asarray(solve_all(params, episodes))
    np.testing.assert_array_equal(
      predictions, solve_all(params, reversed_labels)
    )
    _assert_chance(_accuracies(predictions, episodes.query.targets))


@only(settings=["classification"])
def test_accuracy_after_adaptation_to_random_labels_is_chance(case, trained):
  """Nothing but the support's labels tells a task's labels (trap 5)."""
  episodes = _episodes_of(case, EVALUATION_TASKS, seed=3)
  targets = episodes.query.targets
  informed = np.asarray(case.solve_all(trained, episodes))
  assert _accuracies(informed, targets).mean() > 1 / WAYS + 0.15
  draw = np.random.default_rng(0)
  labels = draw.permuted(
    np.tile(np.arange(WAYS), (EVALUATION_TASKS, 1)), axis=1
  )
  labels = np.take_along_axis(labels, episodes.support.targets, axis=1)
  misled = case.solve_all(trained, _with_support_labels(episodes, labels))
  _assert_chance(_accuracies(np.asarray(misled), targets))


def _with_support_labels(episodes: Episode, labels) -> Episode:
  labels = labels.astype(episodes.support.targets.dtype)
  return episodes._replace(support=episodes.support._replace(targets=labels))
