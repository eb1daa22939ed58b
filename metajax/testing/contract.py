"""What the functions of a meta-learner owe, at its initial parameters."""

import functools
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax.testing.cases import CHUNK, OPTIMIZER, Case, solve, update
from metajax.testing.settings import SETTINGS, task
from metajax.training import TrainState, checkpoint
from metajax.types import Array, Episode, Params

RNG = jax.random.key(0)


def check_gradients_are_like_the_parameters(case: Case) -> None:
  """Gradients are finite and not all zero; metrics are finite scalars."""
  grads, metrics = case.meta_grad(case.params, case.episodes, RNG)
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, case.params)
  chex.assert_tree_all_finite(grads)
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-3
  assert {"loss", SETTINGS[case.setting].metric} <= set(metrics)
  for value in metrics.values():
    assert value.shape == ()
    assert np.isfinite(value)


def check_same_key_same_result(case: Case) -> None:
  """`init` and `meta_grad` are pure functions of their key."""
  chex.assert_trees_all_equal(
    case.meta_grad(case.params, case.episodes, RNG),
    case.meta_grad(case.params, case.episodes, RNG),
  )
  inputs = case.episodes.support.inputs[0]
  chex.assert_trees_all_equal(
    jax.jit(case.learner.init)(RNG, inputs), case.params
  )


def _needs_determinism(case: Case) -> None:
  """Where the key matters, a chunk's tasks have other keys than alone."""
  one, other = (
    case.meta_grad(case.params, case.episodes, jax.random.key(seed))
    for seed in (0, 1)
  )
  same = jax.tree.map(np.array_equal, one, other)
  if not all(jax.tree.leaves(same)):
    raise SkipTest("a stochastic meta-gradient")


def check_a_chunk_is_the_mean_of_its_tasks(case: Case) -> None:
  """The meta-gradient and the metrics of a chunk are means over its tasks."""
  _needs_determinism(case)
  alone = [
    case.meta_grad(case.params, task(case.episodes, slice(i, i + 1)), RNG)
    for i in range(CHUNK)
  ]
  expected = jax.tree.map(lambda *x: np.mean(x, axis=0), *alone)
  found = case.meta_grad(case.params, case.episodes, RNG)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def check_tasks_adapt_under_vmap_as_alone(case: Case) -> None:
  """`adapt` and `predict` see one task."""
  keys = jax.random.split(RNG, CHUNK)
  alone = [
    case.solve(case.params, task(case.episodes, i), keys[i])
    for i in range(CHUNK)
  ]
  together = case.solve_all(case.params, case.episodes)
  np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


def check_reported_metric_is_that_of_the_predictions(case: Case) -> None:
  """The metric of `meta_grad` is that of `adapt` and `predict`."""
  _needs_determinism(case)
  setting, scores = SETTINGS[case.setting], []
  for i in range(CHUNK):
    episode = task(case.episodes, i)
    predictions = case.solve(case.params, episode, RNG)
    scores.append(setting.score(predictions, episode.query.targets))
  _, metrics = case.meta_grad(case.params, case.episodes, RNG)
  np.testing.assert_allclose(
    metrics[setting.metric], np.mean(scores), rtol=1e-4
  )


def check_compiled_equals_uncompiled(case: Case) -> None:
  """`meta_grad` has no side effects that `jax.jit` would hide."""
  with jax.disable_jit():
    plain = case.learner.meta_grad(case.params, case.episodes, RNG)
  compiled = case.meta_grad(case.params, case.episodes, RNG)
  chex.assert_trees_all_close(compiled, plain, rtol=1e-4, atol=1e-5)


def check_bfloat16_gradients_are_close(case: Case) -> None:
  """Gradients in bfloat16 have the direction of those in float32."""
  if case.setting != "classification":
    raise SkipTest("for classes")
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


def check_checkpoints_restore_every_bit(case: Case) -> None:
  """Parameters and the state of their optimizer survive a checkpoint."""
  grads, _ = case.meta_grad(case.params, case.episodes, RNG)
  params, opt_state = update(case.params, OPTIMIZER.init(case.params), grads)
  state = TrainState(jnp.int32(17), params, opt_state)
  like = jax.tree.map(jnp.zeros_like, state)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    checkpoint.save(checkpoint.open_checkpoints(folder), state, {"best": 0.5})
    restored = checkpoint.restore(checkpoint.open_checkpoints(folder), like)
  assert restored is not None
  chex.assert_trees_all_equal(restored.state, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(restored.state, state)
  assert restored.notes == {"best": 0.5}


def check_steps_may_be_traced(case: Case) -> None:
  """A traced `num_eval_steps` takes that many steps.

  For learners that are registered with `traced_steps=True`.
  """
  if not case.traced_steps:
    raise SkipTest("num_eval_steps is a number")

  @jax.jit
  def traced(steps: Array, params: Params, episode: Episode) -> Array:
    return solve(case.build(num_eval_steps=steps), params, episode, RNG)

  episode = task(case.episodes, 0)
  for steps in (0, 2):
    fixed = case.build(num_eval_steps=steps)
    np.testing.assert_allclose(
      traced(jnp.int32(steps), case.params, episode),
      jax.jit(functools.partial(solve, fixed))(case.params, episode, RNG),
      rtol=1e-5,
      atol=1e-6,
    )


def check_gradient_is_exact(case: Case) -> None:
  """The meta-gradient is the derivative of the "loss" that is reported.

  Along random directions, against finite differences in float64. Not a part of
  `CHECKS`: estimators such as Reptile's are no such gradient.
  """
  with jax.enable_x64(True):
    params, episodes = jax.tree.map(
      lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
      (case.params, case.episodes),
    )
    grads, _ = case.meta_grad(params, episodes, RNG)

    def loss(step: float, direction: Params) -> Array:
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


def _inner_product(a: Params, b: Params) -> Any:
  leaves = zip(*map(jax.tree.leaves, (a, b)), strict=True)
  return sum(np.vdot(x, y) for x, y in leaves)
