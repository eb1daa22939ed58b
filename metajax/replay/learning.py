"""The loss of recurrent replay: double Q-learning after a burn-in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent, choose, unroll
from metajax.numerics import check_counts, check_number
from metajax.players.recurrent import encode
from metajax.replay.players import action_values, checked_values
from metajax.replay.sequences import Sequence
from metajax.replay.values import n_step_double_q, sequence_priority
from metajax.tasks.trials import Trial
from metajax.types import Array, Metrics, Params


class Objective(NamedTuple):
  """Configures the loss of a sequence.

  Attributes:
    num_actions: number of actions of the tasks.
    num_steps: number of actions of a trial. The value after the last is 0.
    burn_in: number of actions at the start of a sequence that only warm up the
      state. A sequence that starts with its trial has no burn-in.
    n: number of rewards before the bootstrap.
    discount: discount of one step.
    eps: eps of the rescaling of values, see `values.signed_hyperbolic`. None:
      no rescaling.
    eta: weight of the largest error in a priority.
    zero_state: whether to start at the network's initial state instead of the
      stored one (an ablation of Kapturowski et al. 2019, section 3).
  """

  num_actions: int
  num_steps: int
  burn_in: int = 0
  n: int = 5
  discount: float = 0.99
  eps: float | None = 1e-3
  eta: float = 0.9
  zero_state: bool = False


def check_objective(objective: Objective, length: int) -> None:
  """Checks the numbers of an objective, for sequences of `length` actions.

  Raises:
    ValueError: for a number that is out of its range.
  """
  check_counts(n=objective.n)
  if not 0 <= objective.burn_in < length:
    raise ValueError(
      f"burn_in={objective.burn_in}: must be from 0 to {length - 1}, less than "
      "the length of a sequence."
    )
  check_counts(burn_in=objective.burn_in, at_least=0)
  check_number("discount", objective.discount, at_least=0, at_most=1)
  check_number("eta", objective.eta, at_least=0, at_most=1)
  if objective.eps is not None:
    check_number("eps", objective.eps, at_least=0)


def q_values(
  network: Recurrent,
  params: Params,
  sequences: Sequence,
  objective: Objective,
) -> Array:
  """Unrolls sequences `[batch, ...]`; returns values `[batch, L + 1, actions]`.

  No gradient passes through burn-in: the state after it is a constant. The
  state is not a constant for sequences that start with their trial, because
  they have no burn-in.
  """
  inputs = encode(sequences.steps, objective.num_actions).swapaxes(0, 1)
  first = sequences.steps.first.swapaxes(0, 1)
  state = sequences.state
  if objective.zero_state:
    state = jax.tree.map(
      lambda zero, old: jnp.broadcast_to(zero, old.shape),
      network.start(),
      state,
    )
  b = objective.burn_in
  before, state = unroll(network, params, state, inputs[:b], first[:b])
  state = choose(sequences.start == 0, state, jax.lax.stop_gradient(state))
  after, _ = unroll(network, params, state, inputs[b:], first[b:])
  hidden = jnp.concatenate([before, after])
  values = checked_values(network.head(params, hidden), objective.num_actions)
  return values.swapaxes(0, 1)


def replay_loss(
  network: Recurrent,
  params: Params,
  target_params: Params,
  sequences: Sequence,
  weights: Array,
  objective: Objective,
) -> tuple[Array, tuple[Array, Metrics]]:
  """Computes the loss of a batch of sequences.

  ::

    L = sum_i w_i sum_t m_it (y_it - Q(s_it, a_it))^2 / 2  /  sum_it m_it

  where y are the targets of `n_step_double_q`, w are importance weights, and
  m is 0 in burn-in and 1 elsewhere.

  Args:
    network: its head returns the values of actions.
    params: the parameters of the online network.
    target_params: the parameters of the target network.
    sequences: `[batch, ...]`.
    weights: `[batch]`.
    objective: the configuration of the loss.

  Returns:
    `(loss, (priorities [batch], metrics))`.

  Raises:
    ValueError: see `check_objective`.
  """
  check_objective(objective, sequences.steps.reward.shape[1] - 1)
  online = q_values(network, params, sequences, objective)
  target = q_values(network, target_params, sequences, objective)
  errors, chosen = temporal_differences(sequences, online, target, objective)
  counts = _counts(sequences, objective)
  squares = 0.5 * jnp.square(errors) * counts * weights[:, None]
  loss = squares.sum() / counts.sum()
  priorities = sequence_priority(errors, counts, objective.eta)
  metrics = {
    "loss": loss,
    "q": (chosen * counts).sum() / counts.sum(),
  }
  return loss, (jax.lax.stop_gradient(priorities), metrics)


def acting_priorities(
  network: Recurrent,
  params: Params,
  trial: Trial,
  sequences: Sequence,
  objective: Objective,
) -> Array:
  """Computes the initial priorities of the sequences of a new trial.

  The actor's network is both the online and the target network (Horgan et al.
  2018, algorithm 1)::

    p = eta max_t |delta_t| + (1 - eta) mean_t |delta_t|

  The network is not unrolled again. It reads one step at each of the states
  that the player had.

  Args:
    network: its head returns the values of actions.
    params: the parameters of the player.
    trial: the trial that it has played.
    sequences: `[sequences, ...]`, cut from the trial.
    objective: the configuration of the loss.

  Returns:
    Priorities `[sequences]`, without a gradient.

  References:
    Horgan et al., `Distributed Prioritized Experience Replay
    <https://arxiv.org/abs/1803.00933>`_, 2018.
    Kapturowski et al. 2019 (see `values`), section 2.3.
  """
  values, _ = action_values(
    network, params, trial.memories, trial.steps, objective.num_actions
  )
  length = sequences.steps.reward.shape[1]
  values = values[sequences.start[:, None] + jnp.arange(length)]
  errors, _ = temporal_differences(sequences, values, values, objective)
  counts = _counts(sequences, objective)
  return jax.lax.stop_gradient(sequence_priority(errors, counts, objective.eta))


def temporal_differences(
  sequences: Sequence, online: Array, target: Array, objective: Objective
) -> tuple[Array, Array]:
  """Computes `y_t - Q(s_t, a_t)` with the targets y of `n_step_double_q`.

  Args:
    sequences: `[batch, ...]`.
    online: `[batch, L + 1, actions]`, the values of the online network.
    target: `[batch, L + 1, actions]`, the values of the target network.
    objective: the configuration of the loss.

  Returns:
    The errors `[batch, L]`, and the values of the taken actions `[batch, L]`.
  """
  actions = sequences.steps.action[:, 1:]
  rewards = sequences.steps.reward[:, 1:]
  done = sequences.start[:, None] + jnp.arange(actions.shape[1]) + 1
  discounts = jnp.where(done < objective.num_steps, objective.discount, 0.0)
  targets = jax.vmap(
    lambda r, d, q, q_target: n_step_double_q(
      r, d, q, q_target, objective.n, eps=objective.eps
    )
  )(rewards, discounts, online, target)
  chosen = jnp.take_along_axis(online[:, :-1], actions[..., None], -1)[..., 0]
  return targets - chosen, chosen


def _counts(sequences: Sequence, objective: Objective) -> Array:
  """Returns `[batch, L]`, 1 for steps to learn from and 0 for burn-in."""
  place = jnp.arange(sequences.steps.reward.shape[1] - 1)
  is_first = sequences.start[:, None] == 0
  return ((place >= objective.burn_in) | is_first).astype(jnp.float32)
