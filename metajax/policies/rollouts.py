"""Episodes of one task, played in parallel by a policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts
from metajax.policies.policy import Policy
from metajax.tasks.playable import (
  Actions,
  PlayableTasks,
  as_begun,
  check_playable,
  checked,
)
from metajax.types import Array, Params, PRNGKey


class Rollouts(NamedTuple):
  """Episodes of one task, E of them with up to T steps.

  Attributes:
    observations: `[E, T, ...]`, what the policy saw before each action.
    actions: `[E, T]` or `[E, T, d]`.
    rewards: `[E, T]`, of the action at t; 0 after an episode's end.
    mask: `[E, T]` bool, True up to the step that ended the episode. What comes
      after it has no meaning, and no effect on any result.
    distribution: the policy's distributions, `[E, T, ...]`, without gradient.
  """

  observations: Array
  actions: Array
  rewards: Array
  mask: Array
  distribution: Any

  @property
  def returns(self) -> Array:
    """The sum of the rewards of each episode, without discount, `[E]`."""
    return self.rewards.sum(-1)

  @property
  def log_probs(self) -> Array:
    """The log-probabilities of the actions when they were taken, `[E, T]`."""
    return self.distribution.log_prob(self.actions)


def check_fits(policy: Policy, tasks: PlayableTasks) -> None:
  """Checks that a policy has the actions of the tasks.

  Raises:
    ValueError: if not, or if they are something else.
  """
  check_playable(tasks)
  if not isinstance(policy, Policy):
    raise ValueError(
      f"policy: {type(policy).__name__} given, must be a Policy, such as "
      "categorical_policy(model, tasks.actions)."
    )
  given: Actions = policy.actions
  if given != tasks.actions or type(given) is not type(tasks.actions):
    raise ValueError(
      f"policy: chooses from {given}, but the tasks have {tasks.actions}; "
      "build the policy with actions=tasks.actions."
    )


def play_episodes(
  policy: Policy,
  params: Params,
  tasks: PlayableTasks,
  task: Any,
  rng: PRNGKey,
  num_episodes: int,
) -> Rollouts:
  """Plays independent episodes of one task, all at once.

  Use `jax.vmap` over tasks and keys for many tasks. There is no gradient
  through the actions.

  Args:
    policy: the policy.
    params: its parameters.
    tasks: the distribution of `task`.
    task: a task of `tasks.draw`.
    rng: the key of starts, actions and steps.
    num_episodes: E, at least 1.

  Raises:
    ValueError: if the policy does not fit the tasks, if `num_episodes` is not
      positive, or if the tasks return something else than they must.
  """
  check_fits(policy, tasks)
  tasks = checked(tasks)
  check_counts(num_episodes=num_episodes)
  begin_key, rng = jax.random.split(rng)
  state, observation = jax.vmap(lambda key: tasks.begin(task, key))(
    jax.random.split(begin_key, num_episodes)
  )
  goes_on = jnp.ones(num_episodes, bool)

  def step_one(state: Any, before: Array, action: Array, rng: PRNGKey) -> Any:
    state, seen, *rest = tasks.step(task, state, action, rng)
    return state, as_begun("observation", seen, before), *rest

  def one(carry: Any, rng: PRNGKey) -> tuple[Any, Rollouts]:
    state, observation, goes_on = carry
    act_key, step_key = jax.random.split(rng)
    distribution = policy.apply(params, observation)
    action = distribution.sample(act_key)
    new_state, seen, reward, ended = jax.vmap(step_one)(
      state, observation, action, jax.random.split(step_key, num_episodes)
    )
    # An ended episode stands still, so that nothing in it can overflow.
    kept = jax.tree.map(
      lambda new, old: jnp.where(_like(goes_on, new), new, old),
      (new_state, seen),
      (state, observation),
    )
    reward = jnp.where(goes_on, reward, 0.0)
    step = Rollouts(observation, action, reward, goes_on, distribution)
    return (*kept, goes_on & ~ended), step

  keys = jax.random.split(rng, tasks.horizon)
  _, rollouts = jax.lax.scan(one, (state, observation, goes_on), keys)
  rollouts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rollouts)
  return jax.lax.stop_gradient(rollouts)


def play_and_adapt(
  play: Callable[[Params, PRNGKey], Any],
  adapt: Callable[[Params, Any, Array], Params],
  params: Params,
  rng: PRNGKey,
  num_steps: int,
) -> tuple[Any, Params]:
  """Plays before and after each of K inner steps on what was played last.

  It is a loop, so that a program contains the episodes and the inner step once.

  Args:
    play: `(params, rng) -> played`, a tree of arrays such as rollouts.
    adapt: `(params, played, k) -> params`, where k is a traced int32.
    params: the first parameters.
    rng: a key.
    num_steps: K, at least 0.

  Returns:
    What was played, `[K + 1, ...]`, and the parameters that played the last.
  """

  def one(params: Params, step: tuple[Array, PRNGKey]) -> tuple[Params, Any]:
    k, key = step
    played = play(params, key)
    # k has no axis of tasks, so the last adaptation costs nothing.
    params = jax.lax.cond(
      k < num_steps, lambda p: adapt(p, played, k), lambda p: p, params
    )
    return params, played

  keys = jax.random.split(rng, num_steps + 1)
  params, played = jax.lax.scan(one, params, (jnp.arange(len(keys)), keys))
  return played, params


def along(policy: Policy, params: Params, rollouts: Rollouts) -> Any:
  """Returns a policy's distributions along rollouts, `[E, T, ...]`."""
  seen = rollouts.observations
  flat = seen.reshape(-1, *seen.shape[2:])
  return jax.tree.map(
    lambda x: x.reshape(*seen.shape[:2], *x.shape[1:]),
    policy.apply(params, flat),
  )


def _like(mask: Array, x: Array) -> Array:
  return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
