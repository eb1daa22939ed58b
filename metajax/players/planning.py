"""Shared functions of players that plan in random tabular MDPs with counts.

Players know the horizon and the starts of episodes. They plan at the start of
every episode and follow the plan to its end. Among actions of equal value, they
choose at random.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.numerics import check_counts, check_number
from metajax.players.choices import best
from metajax.tasks.trials import Player, Step
from metajax.types import Array, PRNGKey

if TYPE_CHECKING:  # The import of gymnax computes arrays.
  from metajax.tasks.tabular_mdp import MDPParams

# Values with a smaller relative difference are equal up to float32 rounding.
TOLERANCE = 1e-5


class Sizes(NamedTuple):
  """The sizes of an MDP: states, actions, and steps of an episode."""

  states: int = 10
  actions: int = 5
  horizon: int = 10


class Prior(NamedTuple):
  """The prior of an MDP. The default is the distribution of Duan et al.

  Attributes:
    mean: the mean of the normal prior of mean rewards.
    rewards: the weight of that prior, as a number of visits. The variance of
      the prior is `1 / rewards`.
    transitions: the Dirichlet weight of every next state.
  """

  mean: ArrayLike = 1.0
  rewards: ArrayLike = 1.0
  transitions: ArrayLike = 1.0


class Counts(NamedTuple):
  """The observations of an MDP.

  Attributes:
    next_states: `[states, actions, states]`, the counts of transitions. The
      state after the last step of an episode is not observed.
    visits: `[states, actions]`, the counts of actions.
    rewards: `[states, actions]`, the sums of rewards.
  """

  next_states: Array
  visits: Array
  rewards: Array


class Posterior(NamedTuple):
  """The posterior of an MDP, from `Counts` and a `Prior`.

  Attributes:
    means: `[states, actions]`, the posterior means of mean rewards. The
      posterior variances are `1 / weight`.
    weight: `[states, actions]`, the visits plus the weight of the prior.
    next_states: `[states, actions, states]`, the weights of the Dirichlet
      posterior of transitions.
  """

  means: Array
  weight: Array
  next_states: Array

  @property
  def transitions(self) -> Array:
    """Returns the posterior means of the transition probabilities."""
    return self.next_states / self.next_states.sum(-1, keepdims=True)


def posterior(counts: Counts, prior: Prior) -> Posterior:
  """Computes the posterior of an MDP.

  ::

    mean = (weight_0 mean_0 + sum of rewards) / (weight_0 + visits)

  where weight_0 and mean_0 are those of the prior.

  Raises:
    ValueError: if a weight of the prior is not positive.
  """
  check_number("prior.mean", prior.mean)
  check_number("prior.rewards", prior.rewards, above=0)
  check_number("prior.transitions", prior.transitions, above=0)
  mean, rewards, transitions = map(jnp.asarray, prior)
  weight = rewards + counts.visits
  return Posterior(
    (rewards * mean + counts.rewards) / weight,
    weight,
    transitions + counts.next_states,
  )


class Memory(NamedTuple):
  """The memory of a planning player.

  Attributes:
    counts: the observations of the task.
    plan: `[horizon, states, actions]`, the values of this episode's plan.
    place: the present state of the MDP.
    time: number of steps taken in this episode.
    episode: number of this episode; the first is 1.
  """

  counts: Counts
  plan: Array
  place: Array
  time: Array
  episode: Array


# (values of the next states [states], number of later steps) ->
# values [..., states, actions]
Backup = Callable[[Array, Array], Array]
# (counts, number of the episode, key) -> values [horizon, states, actions]
Plan = Callable[[Counts, Array, PRNGKey], Array]


def value_iteration(backup: Backup, sizes: Sizes) -> Array:
  """Computes Q `[horizon, states, actions]`: `Q_h = backup(max_a Q_{h+1})`."""

  def one(values: Array, left: Array) -> tuple[Array, Array]:
    q = backup(values, left)
    return q.max(-1), q

  left = sizes.horizon - 1 - jnp.arange(sizes.horizon)
  _, q = jax.lax.scan(one, jnp.zeros(sizes.states), left, reverse=True)
  return q


def optimal_value(
  params: "MDPParams", sizes: Sizes, discount: ArrayLike = 1.0
) -> Array:
  """Returns the expected total reward of the optimal policy in an episode.

  Args:
    params: the MDP, which the policy knows.
    sizes: the sizes of the MDP.
    discount: the discount of a reward one step later.
  """
  q = value_iteration(
    lambda v, _: params.means + discount * (params.transitions @ v), sizes
  )
  return q[0, 0].max()


def planner(sizes: Sizes, plan: Plan, epsilon: ArrayLike = 0.0) -> Player:
  """Builds a player that plans at the start of every episode.

  With probability `epsilon` it takes a random action instead of the planned
  one.

  Raises:
    ValueError: if `epsilon` is no probability, or a size not positive.
  """
  check_number("epsilon", epsilon, at_least=0, at_most=1)
  check_counts(**sizes._asdict())
  num_states, num_actions, horizon = sizes
  shape = (num_states, num_actions)

  def start() -> Memory:
    return Memory(
      Counts(
        jnp.zeros((*shape, num_states)), jnp.zeros(shape), jnp.zeros(shape)
      ),
      jnp.zeros((horizon, *shape)),
      jnp.int32(0),
      jnp.int32(0),
      jnp.int32(0),
    )

  def act(memory: Memory, step: Step, rng: PRNGKey) -> tuple[Array, Memory]:
    plan_key, tie_key, explore_key, action_key = jax.random.split(rng, 4)
    place = step.observation.argmax()
    counts, old = memory.counts, memory.place
    led_here = jnp.where(step.first, 0.0, 1.0)
    # After the end of an episode, the observation is of the next episode.
    seen = jnp.where(step.ended, 0.0, led_here)
    counts = Counts(
      counts.next_states.at[old, step.action, place].add(seen),
      counts.visits.at[old, step.action].add(led_here),
      counts.rewards.at[old, step.action].add(led_here * step.reward),
    )
    begins = step.first | step.ended
    time = jnp.where(begins, 0, memory.time + 1)
    episode = memory.episode + begins
    # Episodes of all tasks start at the same steps, so `begins` is not batched
    # and `vmap` keeps the branch.
    q = jax.lax.cond(
      begins, lambda: plan(counts, episode, plan_key), lambda: memory.plan
    )
    explores = jax.random.bernoulli(explore_key, epsilon)
    any_action = jax.random.randint(action_key, (), 0, num_actions)
    choice = best(q[time, place], tie_key, tolerance=TOLERANCE)
    action = jnp.where(explores, any_action, choice)
    return action, Memory(counts, q, place, time, episode)

  return Player(start, act)
