"""Measures an outer step of MAML for policies, and the episodes alone."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from metajax.models.mlp import MLP
from metajax.policies import (
  TrustRegion,
  gaussian_policy,
  policy_learner,
  policy_trainer,
)
from metajax.tasks.locomotion import LOCOMOTION, locomotion
from metajax.tasks.navigation import navigation
from metajax.training.mesh import task_mesh
from scripts.benchmarks import own_flags
from scripts.benchmarks.measuring import machine, seconds_per_step
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_enum(
  "policy_tasks",
  "navigation",
  ["navigation", *LOCOMOTION],
  "Tasks of the suite policies; all but navigation need the extra brax.",
)
own_flags.DEFINE_integer("policy_batch", 20, "Tasks (suite policies).", 1)
own_flags.DEFINE_integer(
  "episodes", 20, "Of a task before and after adaptation (suite policies).", 1
)
own_flags.DEFINE_integer("horizon", 100, "Steps of an episode.", 1)


def measure() -> Iterator[dict]:
  """Times an outer step by TRPO, then its episodes with their baselines."""
  name, horizon = FLAGS.policy_tasks, FLAGS.horizon
  if name == "navigation":
    tasks = navigation(horizon)
  else:
    tasks = locomotion(name, horizon)
  policy = gaussian_policy(MLP(tasks.actions.size, (64, 64)), tasks.actions)
  learner = policy_learner(policy, tasks, num_episodes=FLAGS.episodes)
  mesh = task_mesh(FLAGS.policy_batch)
  trainer = policy_trainer(
    learner,
    tasks,
    TrustRegion(),
    meta_batch=FLAGS.policy_batch,
    rng=jax.random.key(1),
    mesh=mesh,
  )
  state = trainer.init(jax.random.key(2))
  params = jax.device_get(state.meta_params)
  train, executable = trainer.compile(state)

  def call(steps):
    nonlocal state
    state, metrics = train(state, steps)
    return metrics

  step = seconds_per_step(call)

  @jax.jit
  def collect(steps):
    def one(i, total):
      task_key, key = jax.random.split(jax.random.fold_in(jax.random.key(3), i))
      keys = jax.random.split(task_key, FLAGS.policy_batch)
      experience = learner.collect(params, jax.vmap(tasks.draw)(keys), key)
      # The sum uses all values, so that the compiler removes none of them.
      return total + sum(x.sum() for x in jax.tree.leaves(experience))

    return jax.lax.fori_loop(0, steps, one, jnp.float32(0))

  alone = seconds_per_step(collect)
  median, of_episodes = float(np.median(step)), float(np.median(alone))
  # Episodes that end sooner are computed to the horizon, too.
  steps = FLAGS.policy_batch * 2 * FLAGS.episodes * horizon
  yield {
    "policy_tasks": name,
    "tasks": FLAGS.policy_batch,
    "episodes": FLAGS.episodes,
    "horizon": horizon,
    "seconds_per_step": median,
    "seconds_min": float(step.min()),
    "seconds_max": float(step.max()),
    "environment_steps_per_second": steps / median,
    "seconds_in_episodes_on_one_device": of_episodes,
    "environment_steps_per_second_of_episodes_alone": steps / of_episodes,
    "peak_temp_bytes": executable.memory_analysis().temp_size_in_bytes,
    **machine(mesh.size),
  }
