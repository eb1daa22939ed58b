"""Planning in random tabular MDPs by what was counted: the shared machinery.

Players know the horizon and where episodes begin, plan at the beginning of
every episode, and follow the plan to its end. Actions of equal value are chosen
from at random.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.players.choices import best
from metajax.tasks.trials import Player, Step
from metajax.types import Array, PRNGKey

if TYPE_CHECKING:  # It imports gymnax, which computes as it is imported.
  from metajax.tasks.tabular_mdp import MDPParams

# Values that differ by less, relatively, differ by float32's rounding.
TOLERANCE = 1e-5


class Sizes(NamedTuple):
  """Of an MDP: numbers of states and actions, and steps of an episode."""

  states: int = 10
  actions: int = 5
  horizon: int = 10


class Prior(NamedTuple):
  """What is believed of an MDP at first; by default, what Duan et al. draw.

  Attributes:
    mean: of mean rewards, which are normal.
    rewards: its weight, as so many visits: the variance is `1 / rewards`.
    transitions: the Dirichlet weight of every next state.
  """

  mean: ArrayLike = 1.0
  rewards: ArrayLike = 1.0
  transitions: ArrayLike = 1.0


class Counts(NamedTuple):
  """What was seen of an MDP.

  Attributes:
    next_states: `[states, actions, states]`, how often each followed. What
      follows the last step of an episode is not seen.
    visits: `[states, actions]`.
    rewards: `[states, actions]`, their sums.
  """

  next_states: Array
  visits: Array
  rewards: Array


class Posterior(NamedTuple):
  """`Counts` together with a `Prior`.

  Attributes:
    means: `[states, actions]` of mean rewards, whose variances are
      `1 / weight`.
    weight: `[states, actions]`, visits and those that the prior counts as.
    next_states: `[states, actions, states]`, of a Dirichlet distribution.
  """

  means: Array
  weight: Array
  next_states: Array

  @property
  def transitions(self) -> Array:
    """The means of the probabilities of the next states."""
    return self.next_states / self.next_states.sum(-1, keepdims=True)


def posterior(counts: Counts, prior: Prior) -> Posterior:
  """Returns what is believed of an MDP of which this was seen.

  ::

    mean = (weight_0 mean_0 + sum of rewards) / (weight_0 + visits)
  """
  mean, rewards, transitions = map(jnp.asarray, prior)
  weight = rewards + counts.visits
  return Posterior(
    (rewards * mean + counts.rewards) / weight,
    weight,
    transitions + counts.next_states,
  )


class Memory(NamedTuple):
  """Counts, the plan `[horizon, states, actions]`, and where one is.

  Attributes:
    counts: of the task.
    plan: of this episode.
    place: the state.
    time: steps taken in this episode.
    episode: its number, the first being 1.
  """

  counts: Counts
  plan: Array
  place: Array
  time: Array
  episode: Array


# (values [states] of the next states, number of steps that follow this one) to
# values [..., states, actions].
Backup = Callable[[Array, Array], Array]
# (counts, number of the episode, key) to values [horizon, states, actions].
Plan = Callable[[Counts, Array, PRNGKey], Array]


def value_iteration(backup: Backup, sizes: Sizes) -> Array:
  """Returns `Q [horizon, states, actions]`: `Q_h = backup(max_a Q_{h+1})`."""

  def one(values: Array, left: Array) -> tuple[Array, Array]:
    q = backup(values, left)
    return q.max(-1), q

  left = sizes.horizon - 1 - jnp.arange(sizes.horizon)
  _, q = jax.lax.scan(one, jnp.zeros(sizes.states), left, reverse=True)
  return q


def optimal_value(
  params: "MDPParams", sizes: Sizes, discount: ArrayLike = 1.0
) -> Array:
  """The most that can be expected of an episode of a known MDP.

  Args:
    params: the MDP.
    sizes: of it.
    discount: of a reward one step later.
  """
  q = value_iteration(
    lambda v, _: params.means + discount * (params.transitions @ v), sizes
  )
  return q[0, 0].max()


def planner(sizes: Sizes, plan: Plan, epsilon: ArrayLike = 0.0) -> Player:
  """Follows a plan made anew for every episode, but for random actions."""
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
    # Where an episode ends its last state is not seen.
    seen = jnp.where(step.ended, 0.0, led_here)
    counts = Counts(
      counts.next_states.at[old, step.action, place].add(seen),
      counts.visits.at[old, step.action].add(led_here),
      counts.rewards.at[old, step.action].add(led_here * step.reward),
    )
    begins = step.first | step.ended
    time = jnp.where(begins, 0, memory.time + 1)
    episode = memory.episode + begins
    # Episodes of all tasks begin together, which vmap sees: it stays a branch.
    q = jax.lax.cond(
      begins, lambda: plan(counts, episode, plan_key), lambda: memory.plan
    )
    explores = jax.random.bernoulli(explore_key, epsilon)
    any_action = jax.random.randint(action_key, (), 0, num_actions)
    choice = best(q[time, place], tie_key, tolerance=TOLERANCE)
    action = jnp.where(explores, any_action, choice)
    return action, Memory(counts, q, place, time, episode)

  return Player(start, act)
