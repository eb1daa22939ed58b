"""Trials in which all that can be seen varies."""

import jax
import jax.numpy as jnp

from metajax.tasks.trials import Trials


def noise_trials(features, actions, length, chance_of_end=0.3):
  """Observations `[features]`, rewards and ends are drawn anew each step."""

  def reset(rng):
    return jnp.float32(0), jax.random.normal(rng, (features,))

  def step(task, action, rng):
    keys = jax.random.split(rng, 3)
    reward = 2 * jax.random.normal(keys[0]) + action
    observation = jax.random.normal(keys[1], (features,))
    ended = jax.random.bernoulli(keys[2], chance_of_end)
    return task, observation, reward, ended

  return Trials(reset, step, actions, length)
