"""What is stored: overlapping sequences of a trial, with the state before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.tasks.trials import Step, Trial
from metajax.types import Array


class Sequence(NamedTuple):
  """A part of a trial, `L` actions long, never of two tasks.

  Attributes:
    steps: `[L + 1, ...]`: what was seen before each action, and after the last.
    state: of the recurrent network before the first of them, as it was when
      they were played.
    start: int32, how many actions of the trial came before.
  """

  steps: Step
  state: Any
  start: Array


def sequence_starts(
  num_steps: int, length: int, period: int
) -> tuple[int, ...]:
  """Returns where the sequences of a trial begin: every `period` actions.

  The last one ends with the trial, and overlaps the one before by more where
  the period does not divide what is left.

  Args:
    num_steps: actions of a trial.
    length: actions of a sequence, at most `num_steps`.
    period: actions from one start to the next, at most `length`.

  Raises:
    ValueError: if sequences are longer than the trial or leave out actions.
  """
  if not 1 <= length <= num_steps:
    raise ValueError(
      f"length={length}: must be from 1 to {num_steps}, the steps of a trial."
    )
  if not 1 <= period <= length:
    raise ValueError(
      f"period={period}: must be from 1 to {length}, the length of a sequence."
    )
  return (*range(0, num_steps - length, period), num_steps - length)


def cut(trial: Trial, length: int, period: int) -> Sequence:
  """Cuts a trial into its sequences `[sequences, ...]`."""
  num_steps = trial.steps.reward.shape[0] - 1
  starts = jnp.array(sequence_starts(num_steps, length, period))
  steps, states = trial
  return Sequence(
    jax.tree.map(lambda x: x[starts[:, None] + jnp.arange(length + 1)], steps),
    jax.tree.map(lambda x: x[starts], states),
    starts,
  )


def encode(step: Step, num_actions: int) -> Array:
  """Returns what a recurrent player reads, `[..., features]`.

  The observation, and of the step before: its action (one-hot), its reward and
  whether it ended an episode (Duan et al. 2016, section 2.3); at the first step
  of a task zeros in their place.
  """
  axes = step.reward.shape
  past = jnp.concatenate(
    [
      jax.nn.one_hot(step.action, num_actions),
      step.reward[..., None],
      step.ended.astype(jnp.float32)[..., None],
    ],
    axis=-1,
  )
  past = jnp.where(step.first[..., None], 0.0, past)
  return jnp.concatenate([step.observation.reshape(*axes, -1), past], axis=-1)
