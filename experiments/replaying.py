"""What experiments of recurrent experience replay share: flags and training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
import optax
from absl import flags

from experiments import needs_rl, plots, training  # noqa: F401
from experiments.flags import FLAGS, refuse
from metajax.evaluation import Estimate
from metajax.models.recurrent import Cell, Recurrent, recurrent
from metajax.replay import (
  Objective,
  Replay,
  q_player,
  replay_trainer,
  updates_per_step,
)
from metajax.tasks.trials import Player, Trials, play
from metajax.training.loop import Trained
from metajax.types import Params

flags.DEFINE_integer("units", 64, "Units of every layer.", lower_bound=1)
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
flags.DEFINE_float("discount", 1.0, "Of a reward one step later.", 0.0, 1.0)
flags.DEFINE_bool("rescale", True, "Learn rescaled values, h(Q).")
flags.DEFINE_integer(
  "capacity", 4096, "Sequences that are kept.", lower_bound=1
)
flags.DEFINE_integer("batch", 64, "Sequences of an update.", lower_bound=1)
flags.DEFINE_float(
  "replay_ratio",
  1.0,
  "How often a sequence is learned from, on average.",
  lower_bound=1e-3,
)
flags.DEFINE_float(
  "epsilon", 0.4, "Exploration of the boldest actor.", 0.0, 1.0
)
flags.DEFINE_float(
  "priority_exponent", 0.9, "0: sequences are drawn uniformly.", 0.0, 1.0
)
flags.DEFINE_float(
  "importance_exponent", 0.6, "0: nothing makes up for priorities.", 0.0, 1.0
)
flags.DEFINE_integer(
  "target_period", 100, "Updates between copies to the target network.", 1
)
FLAGS.set_default("meta_batch", 64)
FLAGS.set_default("outer_schedule", "cosine")
FLAGS.set_default("eval_tasks", 1000)
FLAGS.set_default("steps", 6000)
FLAGS.set_default("log_every", 200)
FLAGS.set_default("eval_every", 500)

MAX_NORM = 10.0  # Of a gradient.


# A player of its parameter, and values to choose it from, by name.
Reference = tuple[Callable[[Any], Player], Mapping[str, Any]]
NO_CHOICE = {"": ()}


def train(
  experiment: str, network: Recurrent, tasks: Trials
) -> tuple[Path, Trained]:
  """Trains by the flags; tells of the reward on validation tasks."""
  length = FLAGS.length or tasks.num_steps
  objective = Objective(
    tasks.num_actions,
    tasks.num_steps,
    burn_in=FLAGS.burn_in,
    n=FLAGS.n_step,
    discount=FLAGS.discount,
    eps=1e-3 if FLAGS.rescale else None,
    zero_state=FLAGS.zero_state,
  )
  replay = Replay(
    actors=FLAGS.meta_batch,
    length=length,
    period=FLAGS.period or max(1, length // 2),
    capacity=FLAGS.capacity,
    batch=FLAGS.batch,
    ratio=FLAGS.replay_ratio,
    epsilon=FLAGS.epsilon,
    priority_exponent=FLAGS.priority_exponent,
    importance_exponent=FLAGS.importance_exponent,
    target_period=FLAGS.target_period,
  )
  updates = updates_per_step(replay, tasks.num_steps)
  trainer = replay_trainer(
    network,
    tasks,
    optax.chain(
      optax.clip_by_global_norm(MAX_NORM),
      training.outer_optimizer(FLAGS.outer_schedule, updates),
    ),
    objective,
    replay,
    rng=jax.random.fold_in(jax.random.key(FLAGS.seed), 1),
  )
  validation = scorer(tasks, "validation")

  @jax.jit
  def validate(params: Params) -> jax.Array:
    return validation(greedy(network, params, tasks)).sum(-1).mean()

  workdir = training.start(experiment)
  return workdir, training.train(
    trainer, workdir, lambda params: {"reward": float(validate(params))}
  )


class Played(NamedTuple):
  """What came of a training, and of all players on the same test tasks.

  Attributes:
    workdir: the run's folder.
    trained: the recurrent player's training.
    rewards: `[tasks, steps]` by the player's name; "rer" is the recurrent one.
    chosen: what was searched for the other players.
  """

  workdir: Path
  trained: Trained
  rewards: dict[str, np.ndarray]
  chosen: dict[str, str]


def play_all(
  experiment: str, tasks: Trials, references: Mapping[str, Reference]
) -> Played:
  """Trains a recurrent player, and lets it and the others play test tasks."""
  refuse("learner", "task_chunk", "inner_steps", "inner_lr", "memory")
  network = recurrent(
    tasks.num_actions, units=FLAGS.units, cell=FLAGS.cell, head="dueling"
  )
  workdir, trained = train(experiment, network, tasks)
  plots.learning_curve(
    workdir,
    {
      "reward": "all actors, exploring",
      "validation/reward": "validation, not exploring",
    },
    "total reward of a task",
  )
  test = scorer(tasks, "test")
  play = jax.jit(lambda params: test(greedy(network, params, tasks)))
  rewards = {"rer": np.asarray(play(trained.state.meta_params))}
  chosen = {}
  for name, (make, grid) in references.items():
    best, rewards[name] = search(make, grid, tasks)
    if len(grid) > 1:
      chosen[name] = best
  return Played(workdir, trained, rewards, chosen)


def greedy(network: Recurrent, params: Params, tasks: Trials) -> Player:
  return q_player(network, params, tasks.num_actions, 0.0)


def scorer(tasks: Trials, split: str) -> Callable[[Player], jax.Array]:
  """Returns `player -> rewards [tasks, steps]`, always of the same tasks."""
  rng = training.evaluation_key(split)
  keys = jax.random.split(rng, FLAGS.eval_tasks)
  return lambda player: jax.vmap(lambda key: play(player, tasks, key).rewards)(
    keys
  )


def search(
  make: Callable[[Any], Player], grid: Mapping[str, Any], tasks: Trials
) -> tuple[str, np.ndarray]:
  """Chooses on validation tasks what `make` is given.

  Args:
    make: a player of the chosen value.
    grid: values to choose from, by name.
    tasks: what is played.

  Returns:
    The name of the best value, and its rewards `[tasks, steps]` at test.
  """
  rewards = {
    split: jax.jit(lambda value, s=split: scorer(tasks, s)(make(value)))
    for split in ("validation", "test")
  }
  totals = {
    name: float(rewards["validation"](value).sum(-1).mean())
    for name, value in grid.items()
  }
  best = max(totals, key=lambda name: totals[name])
  return best, np.asarray(rewards["test"](grid[best]))


def finish(
  experiment: str,
  played: Played,
  protocol: Mapping[str, Any],
  metrics: Mapping[str, Estimate],
  published: Mapping[str, float],
) -> None:
  """Writes the results, and prints the published ones below."""
  training.finish(
    played.workdir,
    experiment,
    {
      **protocol,
      **_protocol(),
      "parameters_of_players": played.chosen,
      "published": published,
    },
    metrics,
    played.trained,
  )
  if published:
    print("\npublished: " + "  ".join(f"{k} {v}" for k, v in published.items()))


def _protocol() -> Mapping[str, Any]:
  names = (
    "units cell length period burn_in zero_state n_step discount rescale "
    "capacity batch replay_ratio epsilon priority_exponent "
    "importance_exponent target_period"
  )
  return {name: FLAGS[name].value for name in names.split()}
