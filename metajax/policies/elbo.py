"""VariBAD's evidence lower bound: from any belief, all rewards of a trial."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.numerics import check_kind, check_number
from metajax.policies.belief import BeliefNetwork
from metajax.policies.distributions import DiagonalGaussian
from metajax.policies.recurrent_policy import hidden_along
from metajax.tasks.trials import Step
from metajax.types import Array, Metrics, Params


class Likelihood(NamedTuple):
  """The Gaussian likelihood of what the decoder predicts.

  Attributes:
    reward: the standard deviation of a reward. A smaller one gives the
      divergence of beliefs less weight. A sum of squared errors and w times the
      divergence, as in the authors' code, is a deviation of `sqrt(w / 2)`.
    observation: the standard deviation of each number of a next observation.
      None: next observations are not decoded, as for the paper's gridworld.
  """

  reward: float = 0.1
  observation: float | None = None


def check_likelihood(likelihood: Likelihood) -> None:
  """Checks the deviations.

  Raises:
    ValueError: if one is not positive.
  """
  check_kind("likelihood", likelihood, Likelihood)
  check_number("reward", likelihood.reward, above=0)
  if likelihood.observation is not None:
    check_number("observation", likelihood.observation, above=0)


def beliefs(
  network: BeliefNetwork, params: Params, steps: Step
) -> DiagonalGaussian:
  """Returns the beliefs q_0, ..., q_T of trials, `[trials, T + 1, latent]`.

  Args:
    network: from `belief_network`.
    params: its parameters. The belief needs those of the encoder alone.
    steps: `[trials, T + 1, ...]`.
  """
  hidden = hidden_along(network.recurrent, params, steps, network.actions)
  return network.posterior(hidden)


def divergences(posteriors: DiagonalGaussian) -> Array:
  """Returns `KL(q_t || q_{t-1})` in nats, `[trials, T + 1]`.

  Before the first belief there is the prior, N(0, I).
  """
  prior = jax.tree.map(
    lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], posteriors
  )
  return posteriors.kl(prior)


def mean_elbo(
  network: BeliefNetwork,
  params: Params,
  steps: Step,
  noise: Array,
  likelihood: Likelihood,
) -> tuple[Array, Metrics]:
  """Computes the mean of the bounds of all t (Zintgraf et al. 2020, section 3).

  ::

    ELBO_t = E_{m ~ q_t}[ sum_k log p(r_k | s_k, a_k, s_{k+1}, m) ]
             - KL(q_t || q_{t-1})

  The expectation is by one sample of m for each t. The sum is over all steps of
  the trial, those before t and those after. If next observations are decoded,
  their log-likelihoods are terms of the sum, too, except after the end of an
  episode.

  Args:
    network: from `belief_network`.
    params: the parameters of encoder and decoder.
    steps: `[trials, T + 1, ...]`.
    noise: `[trials, T + 1, latent]`, standard normal.
    likelihood: the deviations.

  Returns:
    The mean, and the metrics "elbo", "reward_error" (the mean squared error of
    rewards) and "kl" (the mean divergence).
  """
  posteriors = beliefs(network, params, steps)
  samples = posteriors.mean + jnp.exp(posteriors.log_scale) * noise
  expected = jax.vmap(lambda m, x: network.rewards(params, m, x))(
    samples, steps
  )
  errors = jnp.square(steps.reward[:, None, 1:] - expected)
  fit = _log_density(errors, likelihood.reward).sum(-1)
  if likelihood.observation is not None:
    seen = jax.vmap(lambda m, x: network.observations(params, m, x))(
      samples, steps
    )
    actual = steps.observation.reshape(*steps.reward.shape, -1)[:, None, 1:]
    found = _log_density(jnp.square(actual - seen), likelihood.observation)
    going_on = ~steps.ended[:, None, 1:, None]
    fit = fit + jnp.where(going_on, found, 0.0).sum((-2, -1))
  divergence = divergences(posteriors)
  elbo = (fit - divergence).mean()
  return elbo, {
    "elbo": elbo,
    "reward_error": errors.mean(),
    "kl": divergence.mean(),
  }


def _log_density(squared_error: Array, scale: float) -> Array:
  """Returns log-densities of a Gaussian."""
  constant = np.log(scale) + 0.5 * np.log(2 * np.pi)
  return -0.5 * squared_error / scale**2 - constant
