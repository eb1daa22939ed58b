"""Transitions: single steps of episodes, for learners that keep them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.tasks.playable import PlayableTasks, as_begun, checked
from metajax.types import Array, PRNGKey


class Transition(NamedTuple):
  """A step of an episode, with any leading axes `[...]`.

  Attributes:
    observation: `[..., n]`, s. Observations of other shapes become vectors.
    action: `[..., d]`, a.
    reward: `[...]`, r.
    next_observation: `[..., n]`, s', which the action led to.
    ended: `[...]` bool, whether the task ended the episode there. An episode
      that stops at the horizon has not ended: s' has a value.
  """

  observation: Array
  action: Array
  reward: Array
  next_observation: Array
  ended: Array


class Episodes(NamedTuple):
  """Episodes of up to T steps, with any leading axes `[...]`.

  Attributes:
    steps: `[..., T]`, the transitions.
    mask: `[..., T]` bool, True up to the step that ended the episode. What
      comes after it has no meaning, and no effect on any result.
  """

  steps: Transition
  mask: Array

  @property
  def returns(self) -> Array:
    """The sum of the rewards of each episode, without discount, `[...]`."""
    return jnp.where(self.mask, self.steps.reward, 0.0).sum(-1)


def play_episode(
  tasks: PlayableTasks,
  task: Any,
  act: Callable[[Array, PRNGKey], Array],
  rng: PRNGKey,
) -> Episodes:
  """Plays an episode of one task.

  Args:
    tasks: the distribution of `task`.
    task: a task of `tasks.draw`.
    act: `(observation [n], rng) -> action`.
    rng: the key of start, actions and steps.

  Returns:
    An episode, `[T]`.

  Raises:
    ValueError: if the tasks return something else than they must.
  """
  tasks = checked(tasks)
  begin_key, rng = jax.random.split(rng)
  state, seen = tasks.begin(task, begin_key)

  def one(carry: Any, rng: PRNGKey) -> tuple[Any, Episodes]:
    state, seen, goes_on = carry
    act_key, step_key = jax.random.split(rng)
    action = act(vector(seen), act_key)
    new_state, new, reward, ended = tasks.step(task, state, action, step_key)
    new = as_begun("observation", new, seen)
    # An ended episode stands still, so that nothing in it can overflow.
    new_state, new = jax.tree.map(
      lambda x, old: jnp.where(goes_on, x, old), (new_state, new), (state, seen)
    )
    reward = jnp.where(goes_on, reward, 0.0)
    step = Transition(vector(seen), action, reward, vector(new), ended)
    return (new_state, new, goes_on & ~ended), Episodes(step, goes_on)

  keys = jax.random.split(rng, tasks.horizon)
  _, episode = jax.lax.scan(one, (state, seen, jnp.bool_(True)), keys)
  return episode


def vector(observation: Array) -> Array:
  """Returns an observation as a vector of float32."""
  return jnp.ravel(observation).astype(jnp.float32)
