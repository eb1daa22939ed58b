"""Players of Bernoulli bandits with their own learning, not a learned one.

All count successes and failures of the arms. Those of Duan et al. (2016,
section 3.1): they know that the arms' probabilities are uniform, and UCB1,
epsilon-greedy and greedy begin with a success and a failure of each arm, which
is the same. Ties go to an arm at random.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.tasks.trials import Player, Step
from metajax.types import Array, PRNGKey


class Counts(NamedTuple):
  """Successes and failures by arm, each beginning at 1: Beta posteriors."""

  successes: Array
  failures: Array

  @property
  def means(self) -> Array:
    """Posterior means of the arms' probabilities."""
    return self.successes / (self.successes + self.failures)


def _by_score(
  num_arms: int, score: Callable[[Counts, PRNGKey], Array]
) -> Player:
  """Pulls an arm whose score is highest."""

  def start() -> Counts:
    return Counts(jnp.ones(num_arms), jnp.ones(num_arms))

  def act(memory: Counts, step: Step, rng: PRNGKey) -> tuple[Array, Counts]:
    score_key, tie_key = jax.random.split(rng)
    arm = jax.nn.one_hot(step.action, num_arms) * ~step.first
    memory = Counts(
      memory.successes + arm * step.reward,
      memory.failures + arm * (1 - step.reward),
    )
    scores = score(memory, score_key)
    ties = jax.random.uniform(tie_key, (num_arms,))
    best = jnp.where(scores >= scores.max(), ties, -1.0)
    return best.argmax(), memory

  return Player(start, act)


def random_player(num_actions: int) -> Player:
  """Acts uniformly at random, whatever the task."""

  def act(memory: tuple, step: Step, rng: PRNGKey) -> tuple[Array, tuple]:
    del step
    return jax.random.randint(rng, (), 0, num_actions), memory

  return Player(lambda: (), act)


def greedy(num_arms: int) -> Player:
  """Pulls the arm with the highest posterior mean."""
  return _by_score(num_arms, lambda counts, rng: counts.means)


def epsilon_greedy(num_arms: int, epsilon: float) -> Player:
  """With probability `epsilon` any arm, otherwise the greedy one."""

  def score(counts: Counts, rng: PRNGKey) -> Array:
    explores = jax.random.bernoulli(rng, epsilon)
    return jnp.where(explores, 0.0, counts.means)  # All tie: any arm.

  return _by_score(num_arms, score)


def thompson(num_arms: int, *, optimistic: bool = False) -> Player:
  """Thompson sampling: the arm whose sample of the posterior is highest.

  Args:
    num_arms: arms.
    optimistic: a sample counts as the posterior mean at least (OTS; May et al.
      2012).
  """

  def score(counts: Counts, rng: PRNGKey) -> Array:
    sample = jax.random.beta(rng, counts.successes, counts.failures)
    return jnp.maximum(sample, counts.means) if optimistic else sample

  return _by_score(num_arms, score)


def ucb1(num_arms: int, scale: float) -> Player:
  """`mean + scale sqrt(2 log t / T_i)` (Auer et al. 2002).

  t counts all pulls and T_i those of arm i, with the two that every arm begins
  with.
  """

  def score(counts: Counts, rng: PRNGKey) -> Array:
    del rng
    pulls = counts.successes + counts.failures
    return counts.means + scale * jnp.sqrt(2 * jnp.log(pulls.sum()) / pulls)

  return _by_score(num_arms, score)


def gittins(num_arms: int, indices: ArrayLike) -> Player:
  """The arm with the highest Gittins index, optimal for discounted rewards.

  Args:
    num_arms: arms.
    indices: from `gittins_indices`, for as many pulls as there are.
  """
  table = jnp.asarray(indices, jnp.float32)

  def score(counts: Counts, rng: PRNGKey) -> Array:
    del rng
    return table[
      (counts.successes - 1).astype(jnp.int32),
      (counts.failures - 1).astype(jnp.int32),
    ]

  return _by_score(num_arms, score)
