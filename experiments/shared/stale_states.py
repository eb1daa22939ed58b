"""How wrong stored states have become when they are learned from."""

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

NUM_TRIALS = 64  # Of an estimate.


def discrepancies(
  tasks: Trials, network: Recurrent, objective: Objective
) -> Callable[[TrainState], dict[str, float]]:
  """Returns `state -> Q-discrepancies`, with the states of the call before.

  The first call only remembers its parameters, and returns nothing. The later
  ones let the parameters of the call before play validation tasks, and return
  "discrepancy_first" and "discrepancy_last", see `metajax.replay.Discrepancy`.
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
    # A copy, since the loop gives the state's memory to the next.
    before.append(jax.tree.map(jnp.copy, state.meta_params))
    if len(before) < 2:
      return {}
    first, last = measure(before.pop(0), before[0])
    return {"discrepancy_first": float(first), "discrepancy_last": float(last)}

  return validate
