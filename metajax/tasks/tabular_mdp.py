"""Random tabular MDPs (Duan et al. 2016, section 3.2), a gymnax environment."""

# gymnax documents the methods.
# ruff: noqa: D102, ANN201

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from metajax.numerics import check_counts
from metajax.tasks.environment_tasks import environment_tasks
from metajax.tasks.playable import PlayableTasks
from metajax.tasks.trials import Trials, trials_of
from metajax.types import Array, PRNGKey


@struct.dataclass
class MDPParams(environment.EnvParams):
  """One MDP.

  Attributes:
    transitions: `[states, actions, states]`, probabilities of the next state.
    means: `[states, actions]`, mean rewards. Rewards are normal with variance
      1.
    max_steps_in_episode: the horizon.
  """

  transitions: Array = struct.field(
    default_factory=lambda: jnp.full((10, 5, 10), 0.1)
  )
  means: Array = struct.field(default_factory=lambda: jnp.ones((10, 5)))
  max_steps_in_episode: int = 10


@struct.dataclass
class MDPState(environment.EnvState):
  """The state of an episode. `place` is the number of the MDP's state."""

  place: Array


class TabularMDP(environment.Environment):
  """An MDP whose episodes all begin in state 0."""

  def __init__(self, num_states: int, num_actions: int):
    self.num_states = num_states
    self._num_actions = num_actions

  @property
  def default_params(self) -> MDPParams:
    shape = (self.num_states, self.num_actions)
    return MDPParams(
      transitions=jnp.full((*shape, self.num_states), 1 / self.num_states),
      means=jnp.ones(shape),
    )

  def step_env(self, key, state, action, params):
    reward_key, next_key = jax.random.split(key)
    reward = params.means[state.place, action] + jax.random.normal(reward_key)
    place = jax.random.categorical(
      next_key, jnp.log(params.transitions[state.place, action])
    )
    state = MDPState(time=state.time + 1, place=place.astype(jnp.int32))
    return self._observe(state), state, reward, jnp.array(False), {}

  def reset_env(self, key, params):
    state = MDPState(time=jnp.int32(0), place=jnp.int32(0))
    return self._observe(state), state

  def _observe(self, state: MDPState) -> Array:
    return jax.nn.one_hot(state.place, self.num_states)

  @property
  def num_actions(self) -> int:
    return self._num_actions

  def action_space(self, params=None):
    return spaces.Discrete(self.num_actions)

  def observation_space(self, params):
    return spaces.Box(0.0, 1.0, (self.num_states,), jnp.float32)


def tabular_mdps(
  num_episodes: int,
  *,
  num_states: int = 10,
  num_actions: int = 5,
  horizon: int = 10,
) -> Trials:
  """Returns trials of `mdp_tasks`.

  Args:
    num_episodes: episodes of a trial.
    num_states: number of states, including the first, 0.
    num_actions: number of actions in every state.
    horizon: steps of an episode.

  Raises:
    ValueError: if a number is not positive.
  """
  check_counts(num_episodes=num_episodes)
  tasks = mdp_tasks(
    num_states=num_states, num_actions=num_actions, horizon=horizon
  )
  return trials_of(tasks, num_episodes * horizon, new_starts=False)


def mdp_tasks(
  *, num_states: int = 10, num_actions: int = 5, horizon: int = 10
) -> PlayableTasks:
  """Returns tasks of MDPs with flat Dirichlet transitions.

  The mean rewards are drawn from N(1, 1).

  Args:
    num_states: number of states, including the first, 0.
    num_actions: number of actions in every state.
    horizon: steps of an episode.

  Raises:
    ValueError: if a number is not positive.
  """
  check_counts(num_states=num_states, num_actions=num_actions, horizon=horizon)

  def sample_params(rng: PRNGKey) -> MDPParams:
    transition_key, mean_key = jax.random.split(rng)
    shape = (num_states, num_actions)
    # Exponentials divided by their sum are a flat Dirichlet sample.
    weights = jax.random.exponential(transition_key, (*shape, num_states))
    return MDPParams(
      transitions=weights / weights.sum(-1, keepdims=True),
      means=1.0 + jax.random.normal(mean_key, shape),
      max_steps_in_episode=horizon,
    )

  return environment_tasks(
    TabularMDP(num_states, num_actions), horizon, sample_params=sample_params
  )
