"""What a policy learner has seen of tasks, before and after it adapted."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from metajax.policies.rollouts import Rollouts, play_and_adapt
from metajax.types import Array, Params, PRNGKey


class Experience(NamedTuple):
  """What a learner has seen of one task, before and after adaptation.

  Attributes:
    before: the rollouts of each inner step, `[K, E, T, ...]`.
    after: the rollouts of the adapted policy, `[E, T, ...]`.
    advantages_before: the advantages of `before`, `[K, E, T]`.
    advantages_after: the advantages of `after`, `[E, T]`.
    adapted: the adapted parameters, which played `after`.
  """

  before: Rollouts
  after: Rollouts
  advantages_before: Array
  advantages_after: Array
  adapted: Params


def experience_of(
  play: Callable[[Params, PRNGKey], tuple[Rollouts, Array]],
  inner_step: Callable[..., Params],
  params: Params,
  rng: PRNGKey,
  num_steps: int,
) -> Experience:
  """Plays one task, adapts to it, and plays again. There is no gradient.

  Args:
    play: `(params, rng) -> (rollouts, advantages)`.
    inner_step: `(params, rollouts, advantages, k) -> params`.
    params: the parameters before adaptation.
    rng: a key.
    num_steps: inner steps, K. Without one, `before` has one entry, which is
      `after`.
  """
  (rollouts, found), adapted = play_and_adapt(
    play,
    lambda params, played, k: inner_step(params, *played, k),
    params,
    rng,
    num_steps,
  )
  before = slice(max(num_steps, 1))
  return jax.lax.stop_gradient(
    Experience(
      jax.tree.map(lambda x: x[before], rollouts),
      jax.tree.map(lambda x: x[-1], rollouts),
      found[before],
      found[-1],
      adapted,
    )
  )


def of_inner_step(experience: Experience, k: int) -> tuple[Rollouts, Array]:
  """Returns the rollouts and advantages of the inner step k, of one task."""
  return jax.tree.map(
    operator.itemgetter(k), (experience.before, experience.advantages_before)
  )


def every_few_steps(experience: Experience, few: int) -> Experience:
  """Returns the steps 0, few, 2 few, ... of the episodes of several tasks."""

  def some(time: int, tree: Any) -> Any:
    return jax.tree.map(
      lambda x: jax.lax.slice_in_dim(x, 0, None, few, time), tree
    )

  return experience._replace(
    before=some(3, experience.before),
    after=some(2, experience.after),
    advantages_before=some(3, experience.advantages_before),
    advantages_after=some(2, experience.advantages_after),
  )
