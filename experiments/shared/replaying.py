"""Recurrent experience replay from the flags."""

import optax
from absl import flags

from experiments.shared.player_networks import network
from experiments.shared.shards import num_shards
from experiments.shared.trainees import MAX_NORM, Trainee
from metajax.models.recurrent import Recurrent
from metajax.replay import (
  Objective,
  Replay,
  q_player,
  replay_trainer,
  updates_per_step,
)
from metajax.replay.sequences import sequence_starts
from metajax.runs import rng_keys, training
from metajax.runs.flags import FLAGS, flag_values, refuse
from metajax.tasks.trials import Trials
from metajax.training import task_mesh
from metajax.training.logging import tell

flags.DEFINE_integer(
  "length",
  0,
  "Number of actions in a stored sequence. 0: the whole trial.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "period",
  0,
  "Number of actions between the starts of two sequences. 0: half of --length.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "burn_in",
  0,
  "Number of actions at the start of a sequence that only update the "
  "recurrent state, without a loss.",
  lower_bound=0,
)
flags.DEFINE_bool(
  "zero_state",
  False,
  "Start replayed sequences from a zero recurrent state, not from the "
  "stored one.",
)
flags.DEFINE_integer(
  "n_step",
  5,
  "Number of rewards in a target, before the value of the next state.",
  lower_bound=1,
)
flags.DEFINE_float(
  "discount",
  0.97,
  "Discount factor of rewards in replay, per action.",
  0.0,
  1.0,
)
flags.DEFINE_bool(
  "rescale",
  True,
  "Learn action values on the scale h(Q) of R2D2, close to a square root.",
)
flags.DEFINE_integer(
  "capacity", 4096, "Number of sequences in the buffer.", lower_bound=1
)
flags.DEFINE_integer(
  "batch", 64, "Number of sequences in an update.", lower_bound=1
)
flags.DEFINE_float(
  "replay_ratio",
  2.0,
  "Number of updates that use a sequence, on average.",
  lower_bound=1e-3,
)
flags.DEFINE_float(
  "epsilon",
  0.4,
  "Probability of a random action of the actor that explores most.",
  0.0,
  1.0,
)
flags.DEFINE_float(
  "priority_exponent",
  0.0,
  "Exponent of the priorities by which sequences are drawn. 0: uniformly.",
  0.0,
  1.0,
)
flags.DEFINE_float(
  "importance_exponent",
  0.0,
  "Exponent of the importance weights that correct for the priorities. 0: "
  "no correction.",
  0.0,
  1.0,
)
flags.DEFINE_integer(
  "target_period",
  100,
  "Number of updates after which the target network is copied.",
  1,
)
OWN = (
  "shards length period burn_in zero_state n_step discount rescale capacity "
  "batch replay_ratio epsilon priority_exponent importance_exponent "
  "target_period"
).split()
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


def trainee(tasks: Trials) -> Trainee:
  """Builds a recurrent player and its trainer from the flags."""
  return build(tasks, network(tasks), objective(tasks), replay(tasks))


def build(
  tasks: Trials, network: Recurrent, objective: Objective, replay: Replay
) -> Trainee:
  """Builds a recurrent player and its trainer from the given parts."""
  updates = updates_per_step(replay, tasks.num_steps)
  _tell_ratio(replay, tasks.num_steps, updates)
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


def _tell_ratio(replay: Replay, num_steps: int, updates: int) -> None:
  """Tells how often a sequence is used, if whole updates cannot do as told."""
  new = replay.actors * len(
    sequence_starts(num_steps, replay.length, replay.period)
  )
  used = updates * replay.batch / new
  if abs(used - replay.ratio) > 0.01 * replay.ratio:
    tell(
      f"--replay_ratio={replay.ratio:g}: {updates} updates of {replay.batch} "
      f"of the {new} sequences of a step are a ratio of {used:.3g}"
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


def replay(tasks: Trials, capacity: int | None = None) -> Replay:
  """Returns the replay of the flags; `capacity` replaces --capacity."""
  capacity = FLAGS.capacity if capacity is None else capacity
  if not FLAGS.priority_exponent:  # All weights are 1.
    refuse("importance_exponent", given="with --priority_exponent=0")
  length = FLAGS.length or tasks.num_steps
  shards = num_shards(
    **{
      "--meta_batch": FLAGS.meta_batch,
      "--batch": FLAGS.batch,
      "--capacity": capacity,
    }
  )
  return Replay(
    actors=FLAGS.meta_batch,
    length=length,
    period=FLAGS.period or max(1, length // 2),
    capacity=capacity,
    batch=FLAGS.batch,
    ratio=FLAGS.replay_ratio,
    shards=shards,
    epsilon=FLAGS.epsilon,
    priority_exponent=FLAGS.priority_exponent,
    importance_exponent=FLAGS.importance_exponent,
    target_period=FLAGS.target_period,
  )


def protocol(used: bool = True) -> dict[str, object]:
  """Returns the values of the flags above, for `results.json`.

  `used` tells whether a player is trained by replay. If not, the step size of
  training is none of --outer_lr.
  """
  players = flag_values("units", "cell")
  if not used:
    return {**players, "outer_lr": None}
  devices = task_mesh(FLAGS.shards or FLAGS.meta_batch).size
  return {"devices": devices, **players, **flag_values(*OWN)}
