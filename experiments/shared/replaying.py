"""Recurrent experience replay from the flags."""

from collections.abc import Callable
from typing import NamedTuple, get_args

import optax
from absl import flags

from experiments.shared.shards import num_shards
from metajax.models.recurrent import Cell, Recurrent, recurrent
from metajax.replay import (
  Objective,
  Replay,
  q_player,
  replay_trainer,
  updates_per_step,
)
from metajax.runs import rng_keys, training
from metajax.runs.flags import FLAGS, flag_values
from metajax.tasks.trials import Player, Trials
from metajax.training import Trainer, task_mesh
from metajax.types import Params

flags.DEFINE_integer(
  "units", 64, "Units of each layer of the recurrent network.", lower_bound=1
)
flags.DEFINE_enum("cell", "gru", get_args(Cell), "Recurrent cell.")
flags.DEFINE_integer(
  "length",
  0,
  "Actions of a stored sequence; 0: all of a trial.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "period",
  0,
  "Actions from one sequence to the next; 0: half a sequence.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "burn_in",
  0,
  "Actions at the beginning of a sequence that only warm up the state.",
  lower_bound=0,
)
flags.DEFINE_bool(
  "zero_state", False, "Learn from a zero state, not from the stored one."
)
flags.DEFINE_integer(
  "n_step", 5, "Rewards before the bootstrap.", lower_bound=1
)
flags.DEFINE_float(
  "discount", 0.97, "Discount of a reward one step later, in replay.", 0.0, 1.0
)
flags.DEFINE_bool("rescale", True, "Learn rescaled values of actions, h(Q).")
flags.DEFINE_integer(
  "capacity", 4096, "Sequences that are kept.", lower_bound=1
)
flags.DEFINE_integer("batch", 64, "Sequences of an update.", lower_bound=1)
flags.DEFINE_float(
  "replay_ratio",
  2.0,
  "How often a sequence is learned from, on average.",
  lower_bound=1e-3,
)
flags.DEFINE_float(
  "epsilon", 0.4, "Exploration of the boldest actor.", 0.0, 1.0
)
flags.DEFINE_float(
  "priority_exponent",
  0.0,
  "Exponent of the priorities by which sequences are drawn; 0: all alike.",
  0.0,
  1.0,
)
flags.DEFINE_float(
  "importance_exponent",
  0.0,
  "Exponent of the weights that make up for priorities; 0: none.",
  0.0,
  1.0,
)
flags.DEFINE_integer(
  "target_period", 100, "Updates between copies to the target network.", 1
)
DEFAULTS = {
  "meta_batch": 64,
  "outer_lr": 6e-3,
  "outer_schedule": "cosine",
  "eval_tasks": 1000,
  "steps": 6000,
  "log_every": 200,
  "eval_every": 100,
}

NEEDS = ("flashbax", "gymnax")  # Packages of the extra `rl`.
# Flags of every training script that have no effect on recurrent players.
UNUSED = ("learner", "task_chunk", "inner_steps", "inner_lr", "memory")
MAX_NORM = 10.0  # Gradients are clipped to this norm.


class Trainee(NamedTuple):
  """A player that is trained.

  Attributes:
    trainer: the trainer of the player's parameters.
    player: `(params) -> player`, without exploration.
    rates: the step sizes of the trainer, see `training.loop.fit`.
  """

  trainer: Trainer
  player: Callable[[Params], Player]
  rates: training.Rates


def trainee(tasks: Trials) -> Trainee:
  """Builds a recurrent player and its trainer from the flags."""
  return build(tasks, network(tasks), objective(tasks), replay(tasks))


def build(
  tasks: Trials, network: Recurrent, objective: Objective, replay: Replay
) -> Trainee:
  """Builds a recurrent player and its trainer from the given parts."""
  updates = updates_per_step(replay, tasks.num_steps)
  optimizer = optax.chain(
    optax.clip_by_global_norm(MAX_NORM),
    training.outer_optimizer(FLAGS.outer_schedule, updates),
  )
  trainer = replay_trainer(
    network,
    tasks,
    optimizer,
    objective,
    replay,
    rng=rng_keys.task_key(),
  )
  return Trainee(
    trainer,
    lambda params: q_player(network, params, tasks.num_actions, 0.0),
    training.outer_rates(updates),
  )


def network(tasks: Trials) -> Recurrent:
  return recurrent(
    tasks.num_actions, units=FLAGS.units, cell=FLAGS.cell, head="dueling"
  )


def objective(tasks: Trials) -> Objective:
  return Objective(
    tasks.num_actions,
    tasks.num_steps,
    burn_in=FLAGS.burn_in,
    n=FLAGS.n_step,
    discount=FLAGS.discount,
    eps=1e-3 if FLAGS.rescale else None,
    zero_state=FLAGS.zero_state,
  )


def replay(tasks: Trials) -> Replay:
  length = FLAGS.length or tasks.num_steps
  shards = num_shards(
    **{f"--{k}": FLAGS[k].value for k in ("meta_batch", "batch", "capacity")}
  )
  return Replay(
    actors=FLAGS.meta_batch,
    length=length,
    period=FLAGS.period or max(1, length // 2),
    capacity=FLAGS.capacity,
    batch=FLAGS.batch,
    ratio=FLAGS.replay_ratio,
    shards=shards,
    epsilon=FLAGS.epsilon,
    priority_exponent=FLAGS.priority_exponent,
    importance_exponent=FLAGS.importance_exponent,
    target_period=FLAGS.target_period,
  )


def protocol() -> dict[str, object]:
  """Returns the values of the flags above, for `results.json`."""
  names = (
    "units cell length period burn_in zero_state n_step discount rescale "
    "capacity batch replay_ratio epsilon priority_exponent "
    "importance_exponent target_period shards"
  )
  devices = task_mesh(FLAGS.shards or FLAGS.meta_batch).size
  return {"devices": devices, **flag_values(*names.split())}
