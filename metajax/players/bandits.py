"""Players of Bernoulli bandits with their own learning, not a learned one.

All count successes and failures of the arms, and take the arms' probabilities
to be uniform at first, as Duan et al. (2016, section 3.1). Ties go to an arm at
random; in their experiments, to the first (`ties="first"`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.players.choices import Ties, best, gamma
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
  num_arms: int,
  score: Callable[[Counts, PRNGKey], Array],
  *,
  ties: Ties = "random",
  epsilon: ArrayLike = 0.0,
) -> Player:
  """Pulls an arm whose score is highest, but any with this probability."""

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
  """Acts uniformly at random, whatever the task."""

  def act(memory: tuple, step: Step, rng: PRNGKey) -> tuple[Array, tuple]:
    del step
    return jax.random.randint(rng, (), 0, num_actions), memory

  return Player(lambda: (), act)


def greedy(num_arms: int, *, ties: Ties = "random") -> Player:
  """Pulls the arm with the highest posterior mean."""
  return epsilon_greedy(num_arms, 0.0, ties=ties)


def epsilon_greedy(
  num_arms: int, epsilon: ArrayLike, *, ties: Ties = "random"
) -> Player:
  """With probability `epsilon` any arm, otherwise the greedy one."""
  return _by_score(
    num_arms, lambda counts, rng: counts.means, ties=ties, epsilon=epsilon
  )


def thompson(num_arms: int, *, optimistic: bool = False) -> Player:
  """Thompson sampling: the arm whose sample of the posterior is highest.

  Args:
    num_arms: arms.
    optimistic: a sample counts as the posterior mean at least (May et al.
      2012). What Duan et al. call optimistic is `likeliest_thompson`.
  """

  def score(counts: Counts, rng: PRNGKey) -> Array:
    wins, losses = gamma(rng, jnp.stack(counts))
    sample = wins / (wins + losses)
    return jnp.maximum(sample, counts.means) if optimistic else sample

  return _by_score(num_arms, score)


def likeliest_thompson(num_arms: int, num_samples: int) -> Player:
  """The best arm of the likeliest of several samples of the posterior.

  ::

    argmax_i p^n_i,  n = argmax_n sum_i log Beta(p^n_i; successes_i, failures_i)

  This is what Duan et al. (2016) ran as optimistic Thompson sampling, with 1 to
  20 samples. One sample is Thompson sampling.

  Raises:
    ValueError: if there is no sample.
  """
  if num_samples < 1:
    raise ValueError(f"num_samples={num_samples}: must be 1 or more.")

  def score(counts: Counts, rng: PRNGKey) -> Array:
    shapes = jnp.stack(counts)[:, None]
    shapes = jnp.broadcast_to(shapes, (2, num_samples, num_arms))
    drawn = gamma(rng, shapes)
    total = drawn.sum(0)
    # The density but for a constant; 0 log 0 = 0.
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
  """`mean + scale sqrt(2 log t / T_i)` (Auer et al. 2002).

  Args:
    num_arms: arms.
    scale: of the bonus.
    ties: who is pulled of equals.
    count_first: whether t, the number of all pulls, has the two that every arm
      begins with, as T_i has; in Duan et al.'s experiments it has not.
  """
  first = 0 if count_first else 2 * num_arms

  def score(counts: Counts, rng: PRNGKey) -> Array:
    del rng
    pulls = counts.successes + counts.failures
    total = jnp.maximum(pulls.sum() - first, 1)
    return counts.means + scale * jnp.sqrt(2 * jnp.log(total) / pulls)

  return _by_score(num_arms, score, ties=ties)


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
