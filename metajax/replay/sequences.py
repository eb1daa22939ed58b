"""Cuts trials into overlapping sequences, which replay stores."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts
from metajax.tasks.trials import Step, Trial
from metajax.types import Array


class Sequence(NamedTuple):
  """A part of one trial with `L` actions.

  Attributes:
    steps: `[L + 1, ...]`, the steps before each action, and after the last.
    state: the state of the recurrent network before the first step, as it was
      when the trial was played.
    start: int32, the number of actions of the trial before this sequence.
  """

  steps: Step
  state: Any
  start: Array


def sequence_starts(
  num_steps: int, length: int, period: int
) -> tuple[int, ...]:
  """Returns the starts of the sequences of a trial, every `period` actions.

  The last sequence ends with the trial. If `period` does not divide
  `num_steps - length`, it overlaps the sequence before by more than the others.

  Args:
    num_steps: number of actions of a trial.
    length: number of actions of a sequence, at most `num_steps`.
    period: number of actions from one start to the next, at most `length`.

  Raises:
    ValueError: if a sequence is longer than the trial, or if the sequences
      would leave out actions.
  """
  if not 1 <= length <= num_steps:
    raise ValueError(
      f"length={length}: must be from 1 to {num_steps}, the steps of a trial."
    )
  if not 1 <= period <= length:
    raise ValueError(
      f"period={period}: must be from 1 to {length}, the length of a sequence."
    )
  check_counts(length=length, period=period)
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
