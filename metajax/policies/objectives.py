"""Outer objectives of policy learners: the loss, its metric, and the drift.

All are means over the tasks of an experience `[M, ...]`. `adapt` is
`(params, experience of one task, memory) -> params`: all inner steps again, on
the same rollouts, with their derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.policies.advantages import masked_mean
from metajax.policies.experience import (
  Experience,
  every_few_steps,
  of_inner_step,
)
from metajax.policies.policy import Policy
from metajax.policies.rollouts import Rollouts, along
from metajax.policies.surrogates import Surrogate, exploration
from metajax.types import Array, Metrics, Params

Adapt = Callable[..., Params]


def outer_loss(
  policy: Policy,
  adapt: Adapt,
  surrogate: Surrogate,
  credit: float,
  params: Params,
  experience: Experience,
) -> tuple[Array, Array, Metrics]:
  """Computes the loss after adaptation; see `PolicyLearner.outer`."""

  def one(experience: Experience) -> tuple[Array, Array]:
    after, found = experience.after, experience.advantages_after
    phi = adapt(params, experience)
    distribution = along(policy, phi["policy"], after)
    log_probs = distribution.log_prob(after.actions)
    loss = surrogate(log_probs, after.log_probs, found, after.mask)
    divergence = after.distribution.kl(distribution)
    return loss, masked_mean(divergence, after.mask)

  losses, divergences = jax.vmap(one)(experience)
  loss = losses.mean()
  if credit:
    loss = loss + credit * _credit(policy, params["policy"], experience)
  metrics = {
    "loss": loss,
    "kl": divergences.mean(),
    "return_before": experience.before.rewards[:, 0].sum(-1).mean(),
    "return_after": experience.after.rewards.sum(-1).mean(),
  }
  return loss, divergences.mean(), metrics


def _credit(policy: Policy, params: Params, experience: Experience) -> Array:
  """Returns E-MAML's term, with the mean return of the tasks as baseline.

  Raises:
    ValueError: for one task, whose return is the baseline.
  """
  outcomes = experience.after.returns.mean(-1)
  if len(outcomes) < 2:
    raise ValueError(
      "credit: compares the returns of tasks, but there is one (meta_batch=1); "
      "give 2 or more, or credit=0."
    )
  outcomes = outcomes - outcomes.mean()

  def one(before: Rollouts, outcome: Array) -> Array:
    first = jax.tree.map(lambda x: x[0], before)
    log_probs = along(policy, params, first).log_prob(first.actions)
    return exploration(log_probs, first.mask, outcome)

  return jax.vmap(one)(experience.before, outcomes).mean()


def fisher_product(
  policy: Policy,
  adapt: Adapt,
  every: int,
  params: Params,
  experience: Experience,
) -> Callable[[Params], Params]:
  """Returns `vector -> F vector`; see `PolicyLearner.fisher`."""
  few = every_few_steps(experience, every)

  def distributions(params: Params) -> Any:
    # "plain" can be differentiated forward, too.
    return jax.vmap(
      lambda one: along(
        policy, adapt(params, one, "plain")["policy"], one.after
      )
    )(few)

  def divergence(new: Any, old: Any) -> Array:
    one = jax.vmap(lambda new, old, mask: masked_mean(old.kl(new), mask))
    return one(new, old, few.after.mask).mean()

  # The Gauss-Newton product: the divergence has no gradient at `params`.
  found, push = jax.linearize(distributions, params)
  pull = jax.linear_transpose(push, params)
  gradient = jax.grad(divergence)
  _, curve = jax.linearize(lambda new: gradient(new, found), found)
  return lambda vector: pull(curve(push(vector)))[0]


def mean_drift(
  policy: Policy,
  inner_step: Callable[..., Params],
  num_steps: int,
  params: Params,
  experience: Experience,
) -> Array:
  """Computes the divergence before inner steps; see `PolicyLearner.drift`.

  Raises:
    ValueError: if there is no inner step.
  """
  if not num_steps:
    raise ValueError(
      "penalty: is of the policies before inner steps, but the learner has "
      "num_steps=0; give None."
    )

  def one(experience: Experience) -> Array:
    phi, total = params, jnp.zeros(())
    for k in range(num_steps):
      rollouts, found = of_inner_step(experience, k)
      divergence = rollouts.distribution.kl(
        along(policy, phi["policy"], rollouts)
      )
      total = total + masked_mean(divergence, rollouts.mask)
      if k + 1 < num_steps:
        phi = inner_step(phi, rollouts, found, k)
    return total / num_steps

  return jax.vmap(one)(experience).mean()
