"""Soft actor-critic on a latent task: the losses of one task."""

import jax
import jax.numpy as jnp

from metajax.off_policy.agent import Agent
from metajax.off_policy.transitions import Transition
from metajax.types import Array, Metrics, Params, PRNGKey


def critic_loss(
  agent: Agent,
  params: Params,
  targets: Params,
  steps: Transition,
  z: Array,
  rng: PRNGKey,
  *,
  discount: float,
  temperature: float,
) -> tuple[Array, Metrics]:
  """Computes the squared errors of both critics (Haarnoja et al. 2018).

  ::

    y = r + discount (1 - ended) (min_i Q'_i(s', a', z) - temperature log pi(a' | s', z))
    L = 1/2 sum_i mean (Q_i(s, a, z) - y)^2,       a' ~ pi(. | s', z)

  y is a constant. The gradient of L reaches the critics and z, and so the
  encoder. An episode that stops at the horizon has not ended, so its last step
  has the value of s', too.

  Args:
    agent: from `pearl_agent`.
    params: its parameters.
    targets: the parameters of the target critics, Q'.
    steps: `[n]`, transitions of one task.
    z: `[latent]`.
    rng: the key of a'.
    discount: the discount of a step.
    temperature: the weight of the entropy.

  Returns:
    The loss, and the metric "q", the mean value of the actions.
  """  # noqa: E501
  task = jax.lax.stop_gradient(z)
  seen = steps.next_observation
  action, log_prob = agent.policy(params, seen, task).sample_with_log_prob(rng)
  after = agent.values(targets, seen, action, task).min(0)
  after = jnp.where(steps.ended, 0.0, after - temperature * log_prob)
  target = jax.lax.stop_gradient(steps.reward + discount * after)
  found = agent.values(params["critics"], steps.observation, steps.action, z)
  loss = 0.5 * jnp.square(found - target).mean(-1).sum()
  return loss, {"q": found.mean()}


def actor_loss(
  agent: Agent,
  params: Params,
  steps: Transition,
  z: Array,
  rng: PRNGKey,
  *,
  temperature: float,
) -> tuple[Array, Metrics]:
  """Computes the loss of the actor (Haarnoja et al. 2018).

  ::

    L = mean (temperature log pi(a | s, z) - min_i Q_i(s, a, z)),   a ~ pi(. | s, z)

  z and the critics are constants: the gradient reaches the actor alone, also
  through a.

  Args:
    agent: from `pearl_agent`.
    params: its parameters.
    steps: `[n]`, transitions of one task. Their observations are read.
    z: `[latent]`.
    rng: the key of a.
    temperature: the weight of the entropy.

  Returns:
    The loss, and the metric "entropy", an estimate of that of the actions, in
    nats.
  """  # noqa: E501
  z, critics = jax.lax.stop_gradient((z, params["critics"]))
  seen = steps.observation
  action, log_prob = agent.policy(params, seen, z).sample_with_log_prob(rng)
  value = agent.values(critics, seen, action, z).min(0)
  loss = (temperature * log_prob - value).mean()
  return loss, {"entropy": -log_prob.mean()}
