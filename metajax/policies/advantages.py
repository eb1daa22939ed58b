"""Advantages: GAE of one episode, and with a linear baseline of a task's."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.numerics import check_kind, check_number, dot, wide
from metajax.policies.rollouts import Rollouts
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
    rewards, jnp.zeros(rewards.shape[0] + 1), discount, 1.0
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
  chex.assert_shape(values, (rewards.shape[0] + 1,))
  # Sums in half precision stand still.
  rewards, values = wide(rewards), wide(values)
  errors = rewards + discount * values[1:] - values[:-1]

  def one(advantage: Array, error: Array) -> tuple[Array, Array]:
    advantage = error + discount * gae * advantage
    return advantage, advantage

  nothing = jnp.zeros_like(errors[0])
  _, advantages = jax.lax.scan(one, nothing, errors, reverse=True)
  return advantages


class Estimator(NamedTuple):
  """How advantages are estimated.

  Attributes:
    discount: discount of one step, from 0 to 1.
    gae: lambda of generalised advantage estimation, from 0 to 1. With 1,
      advantages are returns minus the baseline.
    baseline: whether to fit the linear baseline. Without it, values are 0.
    scaled: whether to scale the advantages of a task to mean 0 and standard
      deviation 1.
  """

  discount: float = 0.99
  gae: float = 1.0
  baseline: bool = True
  scaled: bool = True


def check_estimator(estimator: Estimator) -> None:
  """Checks the numbers of an estimator.

  Raises:
    ValueError: if one is out of its range.
  """
  check_kind("estimator", estimator, Estimator)
  for name in ("discount", "gae"):
    check_number(name, getattr(estimator, name), at_least=0, at_most=1)


def advantages(rollouts: Rollouts, estimator: Estimator) -> Array:
  """Estimates the advantages of the actions of one task, `[E, T]`.

  What comes after an episode's end has the advantage 0. An episode that reaches
  the horizon counts as ended there.
  """
  mask = rollouts.mask
  rewards = jnp.where(mask, rollouts.rewards, 0.0)
  returns = jax.vmap(lambda r: discounted_returns(r, estimator.discount))(
    rewards
  )
  values = jnp.zeros_like(returns)
  if estimator.baseline:
    values = linear_values(rollouts.observations, returns, mask)
  values = jnp.pad(jnp.where(mask, values, 0.0), ((0, 0), (0, 1)))
  found = jax.vmap(
    lambda r, v: generalized_advantages(r, v, estimator.discount, estimator.gae)
  )(rewards, values)
  if estimator.scaled:
    mean = masked_mean(found, mask)
    variance = masked_mean(jnp.square(found - mean), mask)
    varied = variance > 0
    # The derivative of the root is infinite at 0.
    deviation = jnp.sqrt(jnp.where(varied, variance, 1.0))
    found = (found - mean) / (jnp.where(varied, deviation, 0.0) + 1e-8)
  return jnp.where(mask, found, 0.0)


def masked_mean(values: Array, mask: Array) -> Array:
  """Returns the mean of the values where the mask is True."""
  return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def linear_values(
  observations: Array, returns: Array, mask: Array, ridge: float = 1e-5
) -> Array:
  """Fits returns by least squares on features of observation and time.

  ::

    features = [s, s^2, t / 100, (t / 100)^2, (t / 100)^3, 1]
    w = argmin_w  mean (features w - returns)^2 + ridge |D w|^2

  where s is the observation, clipped to [-10, 10], t is the number of the step,
  and D are the root mean squares of the features.

  Args:
    observations: `[E, T, ...]`.
    returns: `[E, T]`, the targets.
    mask: `[E, T]`; steps where it is False have no effect.
    ridge: the weight of the penalty.

  Returns:
    The fitted values `[E, T]`.

  References:
    Duan et al., `Benchmarking Deep Reinforcement Learning for Continuous
    Control <https://arxiv.org/abs/1604.06778>`_, 2016 (the baseline of rllab).
  """
  episodes, steps = returns.shape
  seen = jnp.clip(observations.reshape(episodes, steps, -1), -10.0, 10.0)
  time = jnp.broadcast_to(
    jnp.arange(steps)[:, None] / 100, (*seen.shape[:2], 1)
  )
  features = jnp.concatenate(
    [seen, seen**2, time, time**2, time**3, jnp.ones_like(time)], axis=-1
  )
  features = features.reshape(episodes * steps, -1)
  rows = jnp.where(mask.reshape(-1, 1), features, 0.0)
  count = jnp.maximum(mask.sum(), 1)
  squares = jnp.square(rows).sum(0) / count
  # A feature that is always 0 keeps the weight 0.
  size = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
  rows, returns = rows / size, jnp.where(mask, returns, 0.0)
  products = dot(rows.T, rows) / count
  target = dot(rows.T, returns.reshape(-1)) / count
  products = products + ridge * jnp.eye(rows.shape[-1], dtype=products.dtype)
  weights = jax.scipy.linalg.solve(products, target, assume_a="pos")
  return dot(features / size, weights).reshape(returns.shape)
