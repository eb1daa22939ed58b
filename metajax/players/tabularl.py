"""The MDP players that Duan et al. (2016, section 3.2) compare with.

They are those of TabulaRL (Osband and Van Roy), which do not know the true
prior. The prior of posterior sampling and BEB has mean rewards of 0. The prior
of the others has almost no weight.

Duan et al. chose the hyper-parameters on the MDPs that they report: `scale`
from 21 values between 1e-4 and 1, evenly spaced in the logarithm; `num_samples`
from 1 to 20; `epsilon` from 0.1 to 1.

References:
  https://github.com/iosband/TabulaRL
"""

import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.numerics import check_number
from metajax.players.mdps import (
  mdp_epsilon_greedy,
  optimistic_values,
  posterior_sampling,
)
from metajax.players.planning import (
  Counts,
  Prior,
  Sizes,
  planner,
  posterior,
  value_iteration,
)
from metajax.tasks.trials import Player
from metajax.types import Array, PRNGKey

ZERO_MEAN = Prior(mean=0.0)
HARDLY_ANY = Prior(mean=0.0, rewards=1e-4, transitions=1e-4)
HARDLY_ANY_OF_UCRL2 = Prior(mean=0.0, rewards=1e-4, transitions=1e-5)
DELTA = 0.05  # The probability that UCRL2's bounds do not hold.


def tabularl_psrl(sizes: Sizes, num_samples: int = 1) -> Player:
  """Builds TabulaRL's PSRL player; with more than one sample, OPSRL.

  Each sample is solved separately.

  Raises:
    ValueError: if `num_samples` is less than 1.
  """
  return posterior_sampling(
    sizes, num_samples, ZERO_MEAN, solve_separately=True
  )


def tabularl_epsilon_greedy(sizes: Sizes, epsilon: ArrayLike) -> Player:
  """Builds TabulaRL's epsilon-greedy player, which plans with observed data."""
  return mdp_epsilon_greedy(sizes, epsilon, HARDLY_ANY)


def tabularl_beb(sizes: Sizes, scale: ArrayLike) -> Player:
  """Builds TabulaRL's BEB player, with a bonus for rarely visited actions.

  ::

    Q = mean + 1 / (n + 2) + transitions V
        + left 2 horizon^3 scale / (1 + states + m)

  where n counts visits, m counts visits whose next state was observed, and
  `left` is the number of later steps in the episode.

  Raises:
    ValueError: if `scale` is NaN.
  """
  check_number("scale", scale)

  def plan(counts: Counts, episode: Array, rng: PRNGKey) -> Array:
    del episode, rng
    beliefs = posterior(counts, ZERO_MEAN)
    rewards = beliefs.means + 1 / (beliefs.weight + 1)
    beta = 2 * sizes.horizon**3 * scale
    bonus = beta / (1 + beliefs.next_states.sum(-1))
    return value_iteration(
      lambda v, left: rewards + beliefs.transitions @ v + left * bonus, sizes
    )

  return planner(sizes, plan)


def tabularl_ucrl2(sizes: Sizes, scale: ArrayLike) -> Player:
  """Builds TabulaRL's UCRL2 player, with bounds around the observed means.

  ::

    scale sqrt(4 L / n)  of rewards,  scale sqrt(4 states L / m)  of transitions
    L = log(2 states actions (episode + 1) / 0.05)

  where n counts visits and m counts visits whose next state was observed. Both
  are at least 1. The first episode has number 1.

  Raises:
    ValueError: if `scale` is negative.
  """
  check_number("scale", scale, at_least=0)

  def plan(counts: Counts, episode: Array, rng: PRNGKey) -> Array:
    del rng
    beliefs = posterior(counts, HARDLY_ANY_OF_UCRL2)
    pairs = sizes.states * sizes.actions
    four_l = 4 * jnp.log(2 * pairs * (episode + 1) / DELTA)
    seen = counts.next_states.sum(-1)
    width = scale * jnp.sqrt(four_l / jnp.maximum(counts.visits, 1))
    distance = jnp.sqrt(sizes.states * four_l / jnp.maximum(seen, 1))
    return optimistic_values(
      beliefs.means + width,
      beliefs.transitions,
      jnp.asarray(scale * distance),
      sizes,
    )

  return planner(sizes, plan)
