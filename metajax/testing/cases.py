"""Builds a learner in a setting, with its compiled functions, for checks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import SkipTest

import jax
import optax

from metajax.learners import (
  CLASSIFIERS,
  ENCODED,
  OPTIONS,
  REGISTRY,
  TRACED_STEPS,
)
from metajax.learners.options import Setting as Run
from metajax.learners.options import values
from metajax.learners.registry import register_installed
from metajax.testing.settings import SETTINGS, episodes_of, task
from metajax.types import Array, Episode, MetaLearner, Model, Params, PRNGKey

CHUNK, STEPS, TRAINING_STEPS = 3, 2, 200
OPTIMIZER = optax.adam(0.01)


class Case(NamedTuple):
  """A learner in a setting, and its compiled functions.

  Attributes:
    setting: the name of the setting, of `SETTINGS`.
    build: the constructor with the setting's arguments; takes further ones.
    learner: what it builds.
    params: initial meta-parameters.
    episodes: a chunk of tasks, `[CHUNK, ...]`.
    meta_grad: the learner's, compiled.
    solve: `(params, episode, rng) -> predictions` of the queries, compiled.
    solve_all: `(params, episodes) -> predictions` of many tasks, compiled.
    trained: `() -> params` after 200 steps of Adam, computed once.
    encoded: whether the learner is registered with `encoded=True`.
    traced_steps: whether it is registered with `traced_steps=True`.
  """

  setting: str
  build: Callable[..., MetaLearner]
  learner: MetaLearner
  params: Params
  episodes: Episode
  meta_grad: Callable[..., Any]
  solve: Callable[..., Array]
  solve_all: Callable[..., Array]
  trained: Callable[[], Params]
  encoded: bool
  traced_steps: bool


def case(
  learner: str | Callable[..., MetaLearner],
  setting: str,
  *,
  model: Model | None = None,
  **options: Any,
) -> Case:
  """Builds a learner for checks, and compiles its functions when they are used.

  Args:
    learner: the name of a registered learner, or its constructor.
    setting: "regression" (sinusoids) or "classification" (three classes of
      points).
    model: another network; None: that of the setting.
    **options: arguments of the constructor. The options of a registered learner
      have their defaults.

  Raises:
    ValueError: for an unknown name.
    unittest.SkipTest: if the learner predicts classes only.
  """
  if setting not in SETTINGS:
    raise ValueError(f"setting {setting!r}: must be one of {[*SETTINGS]}.")
  tried = SETTINGS[setting]
  if isinstance(learner, str):
    register_installed()
    if learner not in REGISTRY:
      raise ValueError(
        f"learner {learner!r}: must be one of {sorted(REGISTRY)}; register it "
        "first, or give its constructor."
      )
    if learner in CLASSIFIERS and setting != "classification":
      raise SkipTest(f"{learner} predicts classes only")
    run = Run(TRAINING_STEPS, False, tried.inner_rate, "sgd")
    options = values(OPTIONS[learner], {}, run) | options
    constructor = REGISTRY[learner]
  else:
    constructor = learner
  build = functools.partial(
    constructor,
    tried.model if model is None else model,
    tried.loss_fn,
    optax.sgd(tried.inner_rate),
    STEPS,
    metrics={tried.metric: tried.score},
    **options,
  )
  built = build()
  episodes = episodes_of(setting, CHUNK, seed=1)
  example = episodes.support.inputs[0]
  params = jax.jit(built.init)(jax.random.key(0), example)
  meta_grad = jax.jit(built.meta_grad)
  return Case(
    setting,
    build,
    built,
    params,
    episodes,
    meta_grad,
    jax.jit(functools.partial(solve, built)),
    solver_of_many(built),
    functools.cache(lambda: _trained(setting, params, meta_grad)),
    learner in ENCODED,
    learner in TRACED_STEPS,
  )


def solve(
  learner: MetaLearner, params: Params, episode: Episode, rng: PRNGKey
) -> Array:
  """Adapts to a task, and predicts its queries."""
  task_params = learner.adapt(params, episode.support, rng)
  return learner.predict(task_params, episode.query.inputs)


def solver_of_many(learner: MetaLearner) -> Callable[..., Array]:
  """Returns the compiled `(params, episodes) -> predictions`."""
  each = jax.vmap(functools.partial(solve, learner), in_axes=(None, 0, 0))

  @jax.jit
  def solve_all(params: Params, episodes: Episode) -> Array:
    num_tasks = len(episodes.query.inputs)
    return each(
      params, episodes, jax.random.split(jax.random.key(0), num_tasks)
    )

  return solve_all


def _trained(setting: str, params: Params, meta_grad: Callable) -> Params:
  episodes = episodes_of(setting, CHUNK * TRAINING_STEPS, seed=2)
  opt_state = OPTIMIZER.init(params)
  keys = jax.random.split(jax.random.key(0), TRAINING_STEPS)
  for step, key in enumerate(keys):
    chunk = task(episodes, slice(CHUNK * step, CHUNK * (step + 1)))
    grads, _ = meta_grad(params, chunk, key)
    params, opt_state = update(params, opt_state, grads)
  return params


@jax.jit
def update(
  params: Params, opt_state: optax.OptState, grads: Params
) -> tuple[Params, optax.OptState]:
  """Takes a step of Adam."""
  updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state
