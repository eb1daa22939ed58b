"""Players of random tabular MDPs that plan with counts of what they observed.

By default, their `prior` is the true one: flat Dirichlet transitions, and
normal rewards of variance 1 whose means are N(1, 1). This makes them stronger
opponents than those of Duan et al. (2016, section 3.2), which are in
`tabularl`. Their hyper-parameters (`scale`, `epsilon`, `num_samples`) must be
searched.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.numerics import check_counts, check_number
from metajax.players.choices import gamma
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

TRUE_PRIOR = Prior()


def mdp_epsilon_greedy(
  sizes: Sizes, epsilon: ArrayLike, prior: Prior = TRUE_PRIOR
) -> Player:
  """Builds an epsilon-greedy player that plans with the posterior means."""
  return mdp_bonus(sizes, 0.0, epsilon, prior)


def mdp_bonus(
  sizes: Sizes,
  scale: ArrayLike,
  epsilon: ArrayLike = 0.0,
  prior: Prior = TRUE_PRIOR,
) -> Player:
  """Builds a BEB player, which adds an exploration bonus to mean rewards.

  The bonus is `scale / (1 + visits)` (Kolter and Ng 2009). With probability
  `epsilon`, the player takes a random action.

  Raises:
    ValueError: if `scale` is NaN, or `epsilon` no probability.
  """
  check_number("scale", scale)

  def plan(counts: Counts, episode: Array, rng: PRNGKey) -> Array:
    del episode, rng
    beliefs = posterior(counts, prior)
    rewards = beliefs.means + scale / (1 + counts.visits)
    return value_iteration(
      lambda v, _: rewards + beliefs.transitions @ v, sizes
    )

  return planner(sizes, plan, epsilon)


def posterior_sampling(
  sizes: Sizes,
  num_samples: int = 1,
  prior: Prior = TRUE_PRIOR,
  *,
  solve_separately: bool = False,
) -> Player:
  """Builds a PSRL player, which plans with a posterior sample (Strens 2000).

  Args:
    sizes: the sizes of the MDP.
    num_samples: number of samples. With more than one, the player is optimistic
      (OPSRL): the value of an action is the largest over the samples.
    prior: the prior. Its `transitions` must be at least 1.
    solve_separately: where the maximum over samples is taken. If True, each
      sample is solved separately, and the maximum is taken over their final
      values (Osband and Van Roy's code). If False, the maximum is taken in each
      step of value iteration.

  Raises:
    ValueError: if `num_samples` is less than 1, or if the prior's `transitions`
      are less than 1.
  """
  check_counts(num_samples=num_samples)
  # `gamma` draws with shapes of at least 1 only.
  check_number("prior.transitions", prior.transitions, at_least=1)

  def plan(counts: Counts, episode: Array, rng: PRNGKey) -> Array:
    del episode
    transition_key, mean_key = jax.random.split(rng)
    beliefs = posterior(counts, prior)
    shape = (num_samples, *counts.visits.shape)
    # Gamma samples, divided by their sum, are a Dirichlet sample.
    gammas = gamma(
      transition_key,
      jnp.broadcast_to(beliefs.next_states, (*shape, sizes.states)),
    )
    transitions = gammas / gammas.sum(-1, keepdims=True)
    noise = jax.random.normal(mean_key, shape)
    rewards = beliefs.means + noise / jnp.sqrt(beliefs.weight)
    if not solve_separately:
      return value_iteration(
        lambda v, _: (rewards + transitions @ v).max(0), sizes
      )
    solve = lambda r, p: value_iteration(lambda v, _: r + p @ v, sizes)  # noqa: E731
    return jax.vmap(solve)(rewards, transitions).max(0)

  return planner(sizes, plan)


def ucrl2(sizes: Sizes, scale: ArrayLike, prior: Prior = TRUE_PRIOR) -> Player:
  """Builds a UCRL2 player (Jaksch et al. 2010).

  It plans with the best MDP within confidence bounds around the posterior
  means::

    scale sqrt(log(t + 2) / (1 + n))          of rewards
    scale sqrt(states log(t + 2) / (1 + n))   of transitions, in L1 norm

  where n counts the visits of a state and action, and t counts all visits.
  `scale` replaces the constants of the paper.

  Raises:
    ValueError: if `scale` is negative.
  """
  check_number("scale", scale, at_least=0)

  def plan(counts: Counts, episode: Array, rng: PRNGKey) -> Array:
    del episode, rng
    total = counts.visits.sum()
    width = scale * jnp.sqrt(jnp.log(total + 2) / (1 + counts.visits))
    beliefs = posterior(counts, prior)
    distance = jnp.sqrt(float(sizes.states)) * width
    return optimistic_values(
      beliefs.means + width, beliefs.transitions, distance, sizes
    )

  return planner(sizes, plan)


def optimistic_values(
  rewards: Array, transitions: Array, distance: Array, sizes: Sizes
) -> Array:
  """Computes values for the best transitions within a distance (Jaksch et al.).

  Args:
    rewards: `[states, actions]`.
    transitions: `[states, actions, states]`.
    distance: `[states, actions]`, the largest distance of the best transitions
      from `transitions`, in L1 norm.
    sizes: the sizes of the MDP.

  Returns:
    Values `[horizon, states, actions]`.
  """

  def backup(values: Array, left: Array) -> Array:
    del left
    order = jnp.argsort(-values)
    likely = transitions[..., order]
    # Moves half of the distance from the worst states to the best state.
    best = jnp.minimum(likely[..., 0] + distance / 2, 1.0)
    likely = likely.at[..., 0].set(best)
    above = jnp.cumsum(likely, axis=-1)
    kept = jnp.clip(1.0 - (above - likely), 0.0, likely)
    return rewards + kept @ values[order]

  return value_iteration(backup, sizes)
