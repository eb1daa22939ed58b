"""Classic players of Bernoulli bandits.

All count the successes and failures of each arm. Rewards are from 0 to 1. With
others an arm may have no Beta posterior, and its samples are then NaN. The
prior of an arm's probability is uniform, as in Duan et al. (2016, section 3.1).
Among arms of equal score, a player takes a random one. The experiments of Duan
et al. take the first one (`ties="first"`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.numerics import check_counts, check_number
from metajax.players.choices import Ties, best, gamma
from metajax.tasks.trials import Player, Step
from metajax.types import Array, PRNGKey


class Counts(NamedTuple):
  """Parameters of the arms' Beta posteriors: 1 + successes, 1 + failures."""

  successes: Array
  failures: Array

  @property
  def means(self) -> Array:
    """Returns the posterior means of the arms' probabilities."""
    return self.successes / (self.successes + self.failures)


def _by_score(
  num_arms: int,
  score: Callable[[Counts, PRNGKey], Array],
  *,
  ties: Ties = "random",
  epsilon: ArrayLike = 0.0,
) -> Player:
  """Builds a player that pulls the arm of highest score, epsilon-greedily."""
  check_counts(num_arms=num_arms)
  check_number("epsilon", epsilon, at_least=0, at_most=1)

  def start() -> Counts:
    return Counts(jnp.ones(num_arms), jnp.ones(num_arms))

  def act(memory: Counts, step: Step, rng: PRNGKey) -> tuple[Array, Counts]:
    score_key, tie_key, explore_key, arm_key = jax.random.split(rng, 4)
    arm = jax.nn.one_hot(step.action, num_arms) * ~step.first
    memory = Counts(
      memory.successes + arm * step.reward,
      memory.failures + arm * (1 - step.reward),
    )
    explores = jax.random.bernoulli(explore_key, epsilon)
    any_arm = jax.random.randint(arm_key, (), 0, num_arms)
    choice = best(score(memory, score_key), tie_key, ties=ties)
    return jnp.where(explores, any_arm, choice), memory

  return Player(start, act)


def random_player(num_actions: int) -> Player:
  """Builds a player that takes uniformly random actions in any task."""
  check_counts(num_actions=num_actions)

  def act(memory: tuple, step: Step, rng: PRNGKey) -> tuple[Array, tuple]:
    del step
    return jax.random.randint(rng, (), 0, num_actions), memory

  return Player(lambda: (), act)


def greedy(num_arms: int, *, ties: Ties = "random") -> Player:
  """Builds a player that pulls the arm of highest posterior mean."""
  return epsilon_greedy(num_arms, 0.0, ties=ties)


def epsilon_greedy(
  num_arms: int, epsilon: ArrayLike, *, ties: Ties = "random"
) -> Player:
  """Builds an epsilon-greedy player.

  With probability `epsilon` it pulls a random arm, otherwise the arm of highest
  posterior mean.
  """
  return _by_score(
    num_arms, lambda counts, rng: counts.means, ties=ties, epsilon=epsilon
  )


def thompson(num_arms: int, *, optimistic: bool = False) -> Player:
  """Builds a player of Thompson sampling.

  It samples a probability from each arm's posterior, and pulls the arm of the
  highest sample.

  Args:
    num_arms: number of arms.
    optimistic: whether to raise samples below the posterior mean to that mean
      (May et al. 2012). The method that Duan et al. call optimistic is
      `likeliest_thompson`.
  """

  def score(counts: Counts, rng: PRNGKey) -> Array:
    wins, losses = gamma(rng, jnp.stack(counts))
    sample = wins / (wins + losses)
    return jnp.maximum(sample, counts.means) if optimistic else sample

  return _by_score(num_arms, score)


def likeliest_thompson(num_arms: int, num_samples: int) -> Player:
  """Builds a player that takes the likeliest of several posterior samples.

  It pulls the best arm of that sample::

    argmax_i p^n_i,  n = argmax_n sum_i log Beta(p^n_i; successes_i, failures_i)

  Duan et al. (2016) call it optimistic Thompson sampling and use 1 to 20
  samples. With one sample, it is Thompson sampling.

  Raises:
    ValueError: if `num_samples` is less than 1.
  """
  check_counts(num_samples=num_samples)

  def score(counts: Counts, rng: PRNGKey) -> Array:
    shapes = jnp.stack(counts)[:, None]
    shapes = jnp.broadcast_to(shapes, (2, num_samples, num_arms))
    drawn = gamma(rng, shapes)
    total = drawn.sum(0)
    # The log density up to a constant, where 0 log 0 = 0.
    density = jax.scipy.special.xlogy(shapes - 1, drawn / total).sum((0, 2))
    return (drawn[0] / total)[density.argmax()]

  return _by_score(num_arms, score)


def ucb1(
  num_arms: int,
  scale: ArrayLike,
  *,
  ties: Ties = "random",
  count_first: bool = True,
) -> Player:
  """Builds a UCB1 player, which pulls the arm of highest score.

  ::

    score_i = mean_i + scale sqrt(2 log t / T_i)     (Auer et al. 2002)

  Args:
    num_arms: number of arms.
    scale: scale of the bonus.
    ties: see `best`.
    count_first: whether t, the number of all pulls, includes the two
      pseudo-counts of each arm's prior. T_i, the number of pulls of arm i,
      always includes them. In the experiments of Duan et al., t does not.
  """
  check_number("scale", scale)
  first = 0 if count_first else 2 * num_arms

  def score(counts: Counts, rng: PRNGKey) -> Array:
    del rng
    pulls = counts.successes + counts.failures
    total = jnp.maximum(pulls.sum() - first, 1)
    return counts.means + scale * jnp.sqrt(2 * jnp.log(total) / pulls)

  return _by_score(num_arms, score, ties=ties)


def gittins(num_arms: int, indices: ArrayLike) -> Player:
  """Builds a player that pulls the arm of highest Gittins index.

  It is optimal for discounted rewards.

  Beyond the table, and where it has NaN, the index is the posterior mean. The
  true index tends to it as the number of pulls grows.

  Args:
    num_arms: number of arms.
    indices: the result of `gittins_indices`, for at least as many pulls as the
      player makes.

  Raises:
    ValueError: if `indices` is not a square table.
  """
  table = jnp.asarray(indices, jnp.float32)
  if table.ndim != 2 or table.shape[0] != table.shape[1]:
    raise ValueError(
      f"indices of shape {table.shape}: must be square, [pulls, pulls], as "
      "gittins_indices returns."
    )

  def score(counts: Counts, rng: PRNGKey) -> Array:
    del rng
    wins, losses = ((x - 1).astype(jnp.int32) for x in counts)
    index = table.at[wins, losses].get(mode="fill", fill_value=jnp.nan)
    return jnp.where(jnp.isnan(index), counts.means, index)

  return _by_score(num_arms, score)
