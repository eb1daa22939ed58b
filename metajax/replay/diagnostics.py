"""How wrong the states are from which stored sequences are learned."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent
from metajax.replay.learning import Objective, check_objective, q_values
from metajax.replay.sequences import Sequence, cut
from metajax.tasks.trials import Trial
from metajax.types import Array, Params


class Discrepancy(NamedTuple):
  """Of values, relative to the largest of their sequence; see below.

  Attributes:
    first: at the first step that is learned from, after burn-in.
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
  """Compares values from a sequence's state with those from the whole trial.

  ::

    |Q(h^_t) - Q(h_t)|_2 / max_{a, j} |Q(h^_j)_a|

  where h is the state of the present network that has read the trial from its
  beginning, and h^ that of the same network begun in the middle, as the
  objective says: at the stored or the zero state, and after burn-in. The mean
  over those sequences of the trial that do not begin with it.

  Args:
    network: its head gives the values of actions.
    params: the present ones.
    trial: played by earlier parameters, whose states it has stored.
    objective: how a sequence is learned from.
    length: of a sequence.
    period: from the start of a sequence to that of the next.

  Raises:
    ValueError: if there is but one sequence, which begins with the trial, or
      the objective does not fit the sequences.

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
  distance = jnp.linalg.norm(from_state - true, axis=-1) / largest[:, None]
  return Discrepancy(
    distance[:, objective.burn_in].mean(), distance[:, length].mean()
  )
