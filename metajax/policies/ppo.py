"""PPO of recurrent policies: its configuration, its data and its loss."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from metajax.models.recurrent import Recurrent
from metajax.numerics import check_counts, check_kind, check_number
from metajax.policies.distributions import Distribution
from metajax.policies.recurrent_policy import policy_and_values
from metajax.policies.surrogates import clipped
from metajax.tasks.playable import Actions
from metajax.tasks.trials import Step
from metajax.types import Array, Metrics, Params


class PPO(NamedTuple):
  """Configures PPO.

  Attributes:
    actors: number of tasks that are played in a step, on all devices together.
    epochs: number of passes over the trials of a step.
    minibatches: number of updates in an epoch. The trials are split over them.
    discount: discount of one step.
    gae: lambda of generalised advantage estimation, from 0 to 1.
    value_gae: lambda of the returns that the values learn, from 0 to 1. With 1
      they are the discounted rewards of the rest of the trial, as in the RL^2
      paper; with less they lean on the values themselves, which then learn
      slowly of what comes after many steps.
    clip: c of `ppo_loss`. The probability ratio is clipped to [1 - c, 1 + c].
    entropy: weight of the policy's entropy.
    value: weight of the value's squared error, in the unit of `value_scale`.
  """

  actors: int = 64
  epochs: int = 4
  minibatches: int = 4
  discount: float = 0.99
  gae: float = 0.3
  value_gae: float = 1.0
  clip: float = 0.2
  entropy: float = 0.01
  value: float = 0.5


class Rollout(NamedTuple):
  """Trials, with the outputs of the policy that played them.

  Attributes:
    steps: `[trials, T + 1, ...]`.
    log_probs: `[trials, T]`, log-probabilities of the taken actions.
    advantages: `[trials, T]`.
    returns: `[trials, T]`, which the values learn. `ppo_loss` takes them in the
      unit of the network's outputs.
  """

  steps: Step
  log_probs: Array
  advantages: Array
  returns: Array


def ppo_loss(
  network: Recurrent,
  params: Params,
  rollout: Rollout,
  actions: Actions | int,
  ppo: PPO,
) -> tuple[Array, Metrics]:
  """Computes PPO's loss (Schulman et al. 2017, equations 7 and 9).

  ::

    L = mean( -min(rho A, clip(rho, 1 - c, 1 + c) A)
              + value (V - R)^2 / 2 - entropy H )

  where rho is the ratio of the new to the old probability of an action, V are
  the network's values and R the returns, both in the unit of `value_scale`, and
  H is the entropy of the policy. The advantages A of the rollout are scaled to
  mean 0 and standard deviation 1.
  """
  outputs = policy_and_values(network, params, rollout.steps, actions)
  return loss_of_outputs(*outputs, rollout, ppo)


def loss_of_outputs(
  policy: Distribution, values: Array, rollout: Rollout, ppo: PPO
) -> tuple[Array, Metrics]:
  """Computes `ppo_loss` from the outputs of `policy_and_values`."""
  chosen = policy.log_prob(rollout.steps.action[:, 1:])
  advantages = rollout.advantages
  advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
  every = jnp.ones(advantages.shape, bool)
  gain = clipped(ppo.clip)(chosen, rollout.log_probs, advantages, every)
  error = 0.5 * jnp.square(values[:, :-1] - rollout.returns).mean()
  entropy = policy.entropy().mean()
  loss = gain + ppo.value * error - ppo.entropy * entropy
  return loss, {"loss": loss, "value_error": error, "entropy": entropy}


def check_ppo(ppo: PPO, mesh: Mesh) -> int:
  """Checks the numbers of PPO. Returns the number of actors of a device.

  Raises:
    ValueError: for a number that is out of its range, or that the devices
      cannot share.
  """
  check_kind("ppo", ppo, PPO)
  check_counts(epochs=ppo.epochs, minibatches=ppo.minibatches)
  check_counts(actors=ppo.actors, at_least=0)
  for name, highest in {
    "discount": 1,
    "gae": 1,
    "value_gae": 1,
    "entropy": None,
    "value": None,
  }.items():
    check_number(name, getattr(ppo, name), at_least=0, at_most=highest)
  check_number("clip", ppo.clip, above=0)
  share, rest = divmod(ppo.actors, mesh.size)
  if rest or share < 1 or share % ppo.minibatches:
    raise ValueError(
      f"actors={ppo.actors}: must be a positive multiple of "
      f"{mesh.size * ppo.minibatches}: {mesh.size} devices with "
      f"{ppo.minibatches} minibatches each."
    )
  return share
