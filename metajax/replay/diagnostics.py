"""Measures the error of the recurrent states of stored sequences."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent
from metajax.replay.learning import Objective, check_objective, q_values
from metajax.replay.sequences import Sequence, cut
from metajax.tasks.trials import Trial
from metajax.types import Array, Params


class Discrepancy(NamedTuple):
  """Relative discrepancies of Q-values, see `q_discrepancy`.

  Attributes:
    first: at the first step after burn-in.
    last: at the last step of a sequence.
  """

  first: Array
  last: Array


def q_discrepancy(
  network: Recurrent,
  params: Params,
  trial: Trial,
  objective: Objective,
  length: int,
  period: int,
) -> Discrepancy:
  """Compares Q-values of a stored sequence with those of the whole trial.

  ::

    |Q(h^_t) - Q(h_t)|_2 / max_{a, j} |Q(h^_j)_a|

  Both states belong to the network with its present parameters. For h, the
  network has read the trial from its beginning. For h^, it has read only the
  sequence. The objective decides how the sequence starts: at the stored state
  or at the zero state, and with how much burn-in. The result is a mean over the
  trial's sequences, without the first, which starts with the trial.

  Args:
    network: its head returns the values of actions.
    params: the present parameters.
    trial: a trial that earlier parameters played, with their states.
    objective: the objective of the sequences.
    length: number of actions of a sequence.
    period: number of actions from the start of a sequence to the next start.

  Raises:
    ValueError: if the trial has only one sequence, or if the objective does not
      fit the sequences.

  References:
    Kapturowski et al., `Recurrent Experience Replay in Distributed
    Reinforcement Learning <https://openreview.net/forum?id=r1lyTjAqYX>`_, 2019,
    section 3.
  """
  check_objective(objective, length)
  sequences = jax.tree.map(lambda x: x[1:], cut(trial, length, period))
  if not len(sequences.start):
    raise ValueError(
      f"length={length}: is the whole trial; give a shorter one."
    )
  from_state = q_values(network, params, sequences, objective)
  one = Sequence(trial.steps, network.start(), jnp.int32(0))
  whole = jax.tree.map(lambda x: x[None], one)
  true = q_values(network, params, whole, objective)[0]
  true = true[sequences.start[:, None] + jnp.arange(length + 1)]
  largest = jnp.abs(from_state).max((1, 2))
  # Values that are all 0 have no scale, nor has the discrepancy.
  scale = jnp.where(largest > 0, largest, 1.0)
  distance = jnp.linalg.norm(from_state - true, axis=-1) / scale[:, None]
  return Discrepancy(
    distance[:, objective.burn_in].mean(), distance[:, length].mean()
  )
