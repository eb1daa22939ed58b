"""Players of random tabular MDPs that plan with what they have counted.

Without a `prior` they are told the true one (flat Dirichlet transitions; normal
rewards of variance 1, whose means are N(1, 1)), which makes them harder
opponents than those of Duan et al. (2016, section 3.2): see `tabularl`. The
numbers that they are given are searched.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.numerics import check_number
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
  """Plans with the posterior means; acts at random with this probability."""
  return mdp_bonus(sizes, 0.0, epsilon, prior)


def mdp_bonus(
  sizes: Sizes,
  scale: ArrayLike,
  epsilon: ArrayLike = 0.0,
  prior: Prior = TRUE_PRIOR,
) -> Player:
  """Adds `scale / (1 + visits)` to mean rewards: BEB (Kolter and Ng 2009)."""

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
  """Plans with a sample of the posterior: PSRL (Strens 2000).

  Args:
    sizes: of the MDP.
    num_samples: with more than one, every action is as good as in the best of
      them: optimistic (OPSRL).
    prior: its `transitions` must be at least 1.
    solve_separately: whether each sample is solved by itself, and the best
      value of each state, action and step taken then (Osband and Van Roy's
      code); otherwise the best is taken in each step of value iteration, and
      the step before builds on it.

  Raises:
    ValueError: if there is no sample, or the prior's weights are too small.
  """
  if num_samples < 1:
    raise ValueError(f"num_samples={num_samples}: must be 1 or more.")
  # Samples need as much of each next state.
  check_number("prior.transitions", prior.transitions, at_least=1)

  def plan(counts: Counts, episode: Array, rng: PRNGKey) -> Array:
    del episode
    transition_key, mean_key = jax.random.split(rng)
    beliefs = posterior(counts, prior)
    shape = (num_samples, *counts.visits.shape)
    # A Dirichlet sample is one of gammas, divided by their sum.
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
  """Plans with the best MDP within confidence bounds (Jaksch et al. 2010).

  Of rewards the bound is `scale sqrt(log(t + 2) / (1 + n))`, of transitions in
  L1 norm `scale sqrt(states log(t + 2) / (1 + n))`, around posterior means, n
  visits of t in all: the paper's with one factor for its constants.
  """

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
  """Value iteration with the best transitions near to some (Jaksch et al.).

  Args:
    rewards: `[states, actions]`.
    transitions: `[states, actions, states]`.
    distance: `[states, actions]`, how far the best ones may be, in L1 norm.
    sizes: of the MDP.

  Returns:
    `[horizon, states, actions]`.
  """

  def backup(values: Array, left: Array) -> Array:
    del left
    order = jnp.argsort(-values)
    likely = transitions[..., order]
    # Half of the distance goes to the best state, away from the worst ones.
    best = jnp.minimum(likely[..., 0] + distance / 2, 1.0)
    likely = likely.at[..., 0].set(best)
    above = jnp.cumsum(likely, axis=-1)
    kept = jnp.clip(1.0 - (above - likely), 0.0, likely)
    return rewards + kept @ values[order]

  return value_iteration(backup, sizes)
