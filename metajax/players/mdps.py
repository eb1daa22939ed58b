"""Players of random tabular MDPs that plan with what they have counted.

Those of Duan et al. (2016, section 3.2): they know the prior (flat Dirichlet
transitions; normal rewards of variance 1, whose means are N(1, 1)), the horizon
and where episodes begin, plan at the beginning of every episode, and follow the
plan to its end. The numbers that they are given are searched.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.tasks.tabular_mdp import MDPParams
from metajax.tasks.trials import Player, Step
from metajax.types import Array, PRNGKey


class Beliefs(NamedTuple):
  """Posterior of an MDP.

  Attributes:
    next_states: `[states, actions, states]`, counts, each beginning at 1.
    visits: `[states, actions]`.
    rewards: `[states, actions]`, their sums.
  """

  next_states: Array
  visits: Array
  rewards: Array

  @property
  def means(self) -> Array:
    """Posterior means of the mean rewards; their variances are 1/(1 + n)."""
    return (1 + self.rewards) / (1 + self.visits)

  @property
  def transitions(self) -> Array:
    """Posterior means of the transitions."""
    return self.next_states / self.next_states.sum(-1, keepdims=True)


class Memory(NamedTuple):
  """Beliefs, the plan `[horizon, states, actions]`, and the last state."""

  beliefs: Beliefs
  plan: Array
  place: Array
  time: Array


class Sizes(NamedTuple):
  """Of an MDP: numbers of states and actions, and steps of an episode."""

  states: int = 10
  actions: int = 5
  horizon: int = 10


# (expected values [..., states, actions] of what follows) for V [states]
Backup = Callable[[Array], Array]


def value_iteration(backup: Backup, sizes: Sizes) -> Array:
  """Returns `Q [horizon, states, actions]`: `Q_h = backup(max_a Q_{h+1})`."""

  def one(values: Array, _: None) -> tuple[Array, Array]:
    q = backup(values)
    return q.max(-1), q

  _, q = jax.lax.scan(
    one, jnp.zeros(sizes.states), None, length=sizes.horizon, reverse=True
  )
  return q


def optimal_value(params: MDPParams, sizes: Sizes) -> Array:
  """The most that can be expected of an episode of a known MDP."""
  q = value_iteration(lambda v: params.means + params.transitions @ v, sizes)
  return q[0, 0].max()


def _planner(
  sizes: Sizes,
  plan: Callable[[Beliefs, PRNGKey], Array],
  epsilon: Array | float = 0.0,
) -> Player:
  """Follows a plan made anew for every episode, but for random actions."""
  num_states, num_actions, horizon = sizes
  shape = (num_states, num_actions)

  def start() -> Memory:
    return Memory(
      Beliefs(
        jnp.ones((*shape, num_states)), jnp.zeros(shape), jnp.zeros(shape)
      ),
      jnp.zeros((horizon, *shape)),
      jnp.int32(0),
      jnp.int32(0),
    )

  def act(memory: Memory, step: Step, rng: PRNGKey) -> tuple[Array, Memory]:
    plan_key, explore_key, action_key = jax.random.split(rng, 3)
    place = step.observation.argmax()
    beliefs, old = memory.beliefs, memory.place
    counts = jnp.where(step.first, 0.0, 1.0)
    # Where an episode ends its last state is not seen.
    seen = jnp.where(step.ended, 0.0, counts)
    beliefs = Beliefs(
      beliefs.next_states.at[old, step.action, place].add(seen),
      beliefs.visits.at[old, step.action].add(counts),
      beliefs.rewards.at[old, step.action].add(counts * step.reward),
    )
    begins = step.first | step.ended
    time = jnp.where(begins, 0, memory.time + 1)
    # Episodes of all tasks begin together, which vmap sees: it stays a branch.
    q = jax.lax.cond(
      begins, lambda: plan(beliefs, plan_key), lambda: memory.plan
    )
    explores = jax.random.bernoulli(explore_key, epsilon)
    any_action = jax.random.randint(action_key, (), 0, num_actions)
    action = jnp.where(explores, any_action, q[time, place].argmax())
    return action, Memory(beliefs, q, place, time)

  return Player(start, act)


def mdp_epsilon_greedy(sizes: Sizes, epsilon: Array | float) -> Player:
  """Plans with the posterior means; acts at random with this probability."""
  return mdp_bonus(sizes, 0.0, epsilon)


def mdp_bonus(
  sizes: Sizes, scale: Array | float, epsilon: Array | float = 0.0
) -> Player:
  """Adds `scale / (1 + visits)` to mean rewards: BEB (Kolter and Ng 2009)."""

  def plan(beliefs: Beliefs, rng: PRNGKey) -> Array:
    del rng
    rewards = beliefs.means + scale / (1 + beliefs.visits)
    return value_iteration(lambda v: rewards + beliefs.transitions @ v, sizes)

  return _planner(sizes, plan, epsilon)


def posterior_sampling(sizes: Sizes, num_samples: int = 1) -> Player:
  """Plans with a sample of the posterior: PSRL (Strens 2000).

  Args:
    sizes: of the MDP.
    num_samples: with more than one, every action is as good as in the best of
      them, state by state: optimistic (OPSRL).
  """

  def plan(beliefs: Beliefs, rng: PRNGKey) -> Array:
    transition_key, mean_key = jax.random.split(rng)
    shape = (num_samples, *beliefs.visits.shape)
    # A Dirichlet sample is one of gammas, divided by their sum.
    gammas = jax.random.gamma(
      transition_key, beliefs.next_states, (*shape, sizes.states)
    )
    transitions = gammas / gammas.sum(-1, keepdims=True)
    noise = jax.random.normal(mean_key, shape)
    rewards = beliefs.means + noise / jnp.sqrt(1 + beliefs.visits)
    return value_iteration(lambda v: (rewards + transitions @ v).max(0), sizes)

  return _planner(sizes, plan)


def ucrl2(sizes: Sizes, scale: Array | float) -> Player:
  """Plans with the best MDP within confidence bounds (Jaksch et al. 2010).

  Of rewards the bound is `scale sqrt(log(t + 2) / (1 + n))`, of transitions in
  L1 norm `scale sqrt(states log(t + 2) / (1 + n))`, around posterior means, n
  visits of t in all: the paper's with one factor for its constants.
  """

  def plan(beliefs: Beliefs, rng: PRNGKey) -> Array:
    del rng
    total = beliefs.visits.sum()
    width = scale * jnp.sqrt(jnp.log(total + 2) / (1 + beliefs.visits))
    rewards = beliefs.means + width
    distance = jnp.sqrt(float(sizes.states)) * width

    def backup(values: Array) -> Array:
      order = jnp.argsort(-values)
      likely = beliefs.transitions[..., order]
      # Half of the distance goes to the best state, away from the worst ones.
      best = jnp.minimum(likely[..., 0] + distance / 2, 1.0)
      likely = likely.at[..., 0].set(best)
      above = jnp.cumsum(likely, axis=-1)
      kept = jnp.clip(1.0 - (above - likely), 0.0, likely)
      return rewards + kept @ values[order]

    return value_iteration(backup, sizes)

  return _planner(sizes, plan)
