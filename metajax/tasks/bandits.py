"""Bernoulli bandits (Duan et al. 2016, section 3.1), a gymnax environment."""

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
class BanditParams(environment.EnvParams):
  """One bandit.

  Attributes:
    probabilities: `[arms]`, the probability of a reward of 1.
    max_steps_in_episode: pulls of an episode.
  """

  probabilities: Array = struct.field(default_factory=lambda: jnp.full(2, 0.5))
  max_steps_in_episode: int = 100


class BernoulliArms(environment.Environment):
  """Arms that pay 1 with their own probabilities. The observation is zero."""

  def __init__(self, num_arms: int):
    self.num_arms = num_arms

  @property
  def default_params(self) -> BanditParams:
    return BanditParams(probabilities=jnp.full(self.num_arms, 0.5))

  def step_env(self, key, state, action, params):
    reward = jax.random.bernoulli(key, params.probabilities[action])
    state = environment.EnvState(time=state.time + 1)
    return jnp.zeros(1), state, reward.astype(jnp.float32), jnp.array(False), {}

  def reset_env(self, key, params):
    return jnp.zeros(1), environment.EnvState(time=jnp.int32(0))

  @property
  def num_actions(self) -> int:
    return self.num_arms

  def action_space(self, params=None):
    return spaces.Discrete(self.num_arms)

  def observation_space(self, params):
    return spaces.Box(0.0, 0.0, (1,), jnp.float32)


def bandits(num_arms: int, num_pulls: int) -> Trials:
  """Returns trials of `bandit_tasks`, of one episode each.

  Raises:
    ValueError: if there are fewer than 2 arms, or no pulls.
  """
  tasks = bandit_tasks(num_arms, num_pulls)
  return trials_of(tasks, num_pulls, new_starts=False)


def bandit_tasks(num_arms: int, num_pulls: int) -> PlayableTasks:
  """Returns tasks of bandits. Probabilities are uniform in `[0, 1]`.

  An episode is `num_pulls` pulls.

  Raises:
    ValueError: if there are fewer than 2 arms, or no pulls.
  """
  check_counts(num_arms=num_arms, at_least=2)
  check_counts(num_pulls=num_pulls)

  def sample_params(rng: PRNGKey) -> BanditParams:
    return BanditParams(
      probabilities=jax.random.uniform(rng, (num_arms,)),
      max_steps_in_episode=num_pulls,
    )

  return environment_tasks(
    BernoulliArms(num_arms), num_pulls, sample_params=sample_params
  )
