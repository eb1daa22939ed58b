"""Measures the error of stored recurrent states when they are replayed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent
from metajax.replay import Objective, q_discrepancy, q_player
from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS
from metajax.tasks.trials import Trials, play
from metajax.training import TrainState
from metajax.types import Params

NUM_TRIALS = 64  # Trials of an estimate.


def discrepancies(
  tasks: Trials, network: Recurrent, objective: Objective
) -> Callable[[TrainState], dict[str, float]]:
  """Returns `state -> Q-discrepancies` between successive calls.

  The first call only stores its parameters and returns an empty dictionary. A
  later call plays validation tasks with the parameters of the call before. It
  returns "discrepancy_first" and "discrepancy_last" for the states of these
  trials, see `metajax.replay.Discrepancy`.
  """
  keys = jax.random.split(rng_keys.evaluation_key("validation"), NUM_TRIALS)
  before: list[Params] = []

  @jax.jit
  def measure(old: Params, new: Params):
    player = q_player(network, old, tasks.num_actions, FLAGS.epsilon / 2)

    def one(key):
      trial = play(player, tasks, key)
      return q_discrepancy(
        network, new, trial, objective, FLAGS.length, FLAGS.period
      )

    return jax.tree.map(lambda x: x.mean(), jax.vmap(one)(keys))

  def validate(state: TrainState) -> dict[str, float]:
    # A copy, because the training loop donates the memory of the state.
    before.append(jax.tree.map(jnp.copy, state.meta_params))
    if len(before) < 2:
      return {}
    first, last = measure(before.pop(0), before[0])
    return {"discrepancy_first": float(first), "discrepancy_last": float(last)}

  return validate
