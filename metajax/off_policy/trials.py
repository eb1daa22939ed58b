"""Posterior sampling: episodes of one task, each with a newly drawn z."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.off_policy.agent import Agent
from metajax.off_policy.transitions import (
  Episodes,
  Transition,
  play_episode,
  vector,
)
from metajax.tasks.playable import PlayableTasks
from metajax.types import Array, Params, PRNGKey


def play_trial(
  agent: Agent,
  params: Params,
  tasks: PlayableTasks,
  task: Any,
  rng: PRNGKey,
  num_episodes: int,
  *,
  deterministic: bool = False,
) -> Episodes:
  """Plays episodes of one task, one after the other (Rakelly et al. 2019).

  ::

    z_1 ~ N(0, I),     z_k ~ q(z | all transitions of episodes 1, ..., k - 1)

  z is the same for all steps of an episode, so that an episode tries one
  hypothesis. The agent adapts between episodes.

  Args:
    agent: from `pearl_agent`.
    params: its parameters.
    tasks: the distribution of `task`.
    task: a task of `tasks.draw`.
    rng: the key of z, actions and what happens.
    num_episodes: K, at least 1.
    deterministic: take the mode of an action rather than a sample. z is drawn
      all the same.

  Returns:
    The episodes, `[K, T]`.
  """
  empty = empty_trial(agent, tasks, task, num_episodes)

  def one(trial: Episodes, k: Array) -> tuple[Episodes, None]:
    z_key, play_key = jax.random.split(jax.random.fold_in(rng, k))
    seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trial)
    z = agent.posterior(params, seen.steps, seen.mask).sample(z_key)

    def act(observation: Array, rng: PRNGKey) -> Array:
      law = agent.policy(params, observation[None], z)
      return (law.mode if deterministic else law.sample(rng))[0]

    episode = play_episode(tasks, task, act, play_key)
    return jax.tree.map(lambda x, y: x.at[k].set(y), trial, episode), None

  trial, _ = jax.lax.scan(one, empty, jnp.arange(num_episodes))
  return jax.lax.stop_gradient(trial)


def empty_trial(
  agent: Agent, tasks: PlayableTasks, task: Any, num_episodes: int
) -> Episodes:
  """Returns a trial of a task in which nothing has happened, `[K, T]`."""
  shape = num_episodes, tasks.horizon
  seen = jax.eval_shape(lambda: vector(tasks.begin(task, jax.random.key(0))[1]))
  observations = jnp.zeros((*shape, *seen.shape))
  nothing = Transition(
    observations,
    jnp.zeros((*shape, agent.actions.size)),
    jnp.zeros(shape),
    observations,
    jnp.zeros(shape, bool),
  )
  return Episodes(nothing, jnp.zeros(shape, bool))
