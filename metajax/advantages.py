"""Discounted returns and generalised advantages of one episode."""

import jax
import jax.numpy as jnp

from metajax.types import Array


def discounted_returns(rewards: Array, discount: float) -> Array:
  """Computes the returns of one episode, `G_t = sum_k discount^k r_{t+k}`.

  Args:
    rewards: `[T]`; 0 after the end of the episode.
    discount: discount of one step.

  Returns:
    Returns `[T]`.
  """
  return generalized_advantages(
    rewards, jnp.zeros(rewards.shape[0] + 1, rewards.dtype), discount, 1.0
  )


def generalized_advantages(
  rewards: Array, values: Array, discount: float, gae: float
) -> Array:
  """Computes advantages of one trial (Schulman et al. 2016, equation 16).

  ::

    A_t = sum_k (discount gae)^k (r_{t+k} + discount V_{t+k+1} - V_{t+k})

  Args:
    rewards: `[T]`, the reward of the action at t.
    values: `[T + 1]`, the values of the observations. The last is 0 if the task
      is over.
    discount: discount of one step.
    gae: lambda.

  Returns:
    Advantages `[T]`.
  """
  errors = rewards + discount * values[1:] - values[:-1]

  def one(advantage: Array, error: Array) -> tuple[Array, Array]:
    advantage = error + discount * gae * advantage
    return advantage, advantage

  nothing = jnp.zeros_like(errors[0])
  _, advantages = jax.lax.scan(one, nothing, errors, reverse=True)
  return advantages
