"""Compares trained players with other players on the same tasks."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.shared import (
  beliefs,
  on_policy,
  replaying,
  trainees,
  trial_plots,
)
from experiments.shared.references import (
  AS_PUBLISHED,
  ON_OTHERS,
  Reference,
  search,
)
from metajax.evaluation import Estimate, estimate
from metajax.runs import report, scoring
from metajax.runs.flags import FLAGS, flag_values, refuse
from metajax.runs.stages import Stages, reached
from metajax.tasks.trials import Player, Trials, with_last_observation
from metajax.training.loop import Trained
from metajax.types import Params

flags.DEFINE_bool(
  "last_observation",
  False,
  "Give trained players the previous observation, too.",
)

flags.DEFINE_bool("rer", True, "Train a player by replay.")
flags.DEFINE_bool(
  "references_only", False, "Evaluate only the players that need no training."
)


class Played(NamedTuple):
  """The results of all players on the same test tasks.

  Attributes:
    workdir: the run's folder.
    trained: the last state, and the seconds of all trainings. Without a
      training, the state is None and the seconds are those of the references.
    players: the trained players by name.
    params: their parameters, by the same names.
    rewards: `[tasks, steps]` by the player's name. "rer" is trained by replay,
      "rl2_ppo" and "varibad" on policy.
    about: entries for `results.json`: the chosen parameters of the players, the
      seconds of each training, and the environment steps after which a trained
      player was as good as the rival on validation tasks.
  """

  workdir: Path
  trained: Trained
  players: dict[str, Player]
  params: dict[str, Params]
  rewards: dict[str, np.ndarray]
  about: dict[str, Any]


def play_all(
  experiment: str,
  tasks: Trials,
  references: Callable[[], Mapping[str, Reference]],
  rival: str,
) -> Played:
  """Trains recurrent players. Plays the test tasks with all players.

  Args:
    experiment: the name of the experiment.
    tasks: the tasks that are played.
    references: makes the players that need no training. It may take long, and
      is called only if the run has not ended before.
    rival: the name of the reference whose score the trained players should
      reach.
  """
  if not (FLAGS.rer or FLAGS.ppo or FLAGS.varibad or FLAGS.references_only):
    raise ValueError(
      "--norer with --noppo: trains nothing; leave one out, or give --varibad "
      "or --references_only."
    )
  refuse_unused()
  seen = with_last_observation(tasks) if FLAGS.last_observation else tasks
  to_train = {}
  if not FLAGS.references_only:
    if FLAGS.rer:
      to_train["rer"] = replaying.trainee(seen)
    if FLAGS.ppo:
      to_train["rl2_ppo"] = on_policy.trainee(seen)
    if FLAGS.varibad:
      to_train["varibad"] = beliefs.trainee(seen)
  stages = Stages(experiment)
  rewards, seconds, players, params = {}, {}, {}, {}
  for name, trainee in to_train.items():
    trained, rewards[name] = trainees.train(stages, name, trainee, seen)
    seconds[name] = trained.wall_seconds
    params[name] = trained.state.meta_params
    players[name] = trainee.player(params[name])
  chosen, levels, of_references = {}, {}, {}
  for name, reference in references().items():
    began = time.monotonic()
    found = search(reference, tasks)
    of_references[name] = time.monotonic() - began
    print(f"{name}: {of_references[name]:.1f} s", file=sys.stderr)
    rewards[name], levels[name] = found.rewards, found.level
    if len(reference.grid) > 1:
      chosen[name] = found.best
    if reference.on_test:
      rewards[name + ON_OTHERS] = rewards[name]
      chosen[name + ON_OTHERS] = chosen[name]
      rewards[name], chosen[name] = found.rewards_of_test, found.best_of_test
  about = {"parameters_of_players": chosen}
  if not to_train:
    total = sum(of_references.values())
    trained = Trained(None, total, 0.0)
    about["seconds_of_players"] = of_references
    return Played(stages.workdir, trained, players, params, rewards, about)
  history = {name: trainees.progress(stages, name, tasks) for name in to_train}
  trial_plots.learning(
    stages.workdir / "learning.png",
    history,
    {
      name: level
      for name, level in levels.items()
      if name != "random" and not name.endswith(AS_PUBLISHED)
    },
    "environment steps",
    "reward of a task, validation",
  )
  about |= {
    "training_seconds": seconds,
    f"environment_steps_to_{rival}": {
      name: reached(points, levels[rival]) for name, points in history.items()
    },
  }
  return Played(stages.workdir, stages.total(), players, params, rewards, about)


def refuse_unused() -> None:
  """Refuses flags of players that are not trained."""
  beliefs.refuse_unused()
  if FLAGS.references_only:
    refuse(
      *("steps", "meta_batch", "seed", "units", "cell", "outer_lr"),
      *("outer_schedule", "varibad", "last_observation"),
      *replaying.OWN,
      *on_policy.OWN,
      given="with --references_only",
    )
  if not FLAGS.rer:
    refuse("outer_lr", *replaying.OWN, given="with --norer")
  if not (FLAGS.ppo or FLAGS.varibad):
    refuse(*on_policy.OWN, given="with --noppo")


def drawn(played: Played) -> dict[str, np.ndarray]:
  """Returns the rewards for pictures, without players "as published"."""
  return {
    name: rewards
    for name, rewards in played.rewards.items()
    if AS_PUBLISHED not in name
  }


def totals(played: Played, *rivals: str) -> dict[str, Estimate]:
  """Returns the mean total of each player, and of "rer" minus each rival."""
  sums = {
    name: r.sum(-1, dtype=np.float64) for name, r in played.rewards.items()
  }
  pairs = [("rer", name) for name in rivals if "rer" in sums]
  means = {name: estimate(total) for name, total in sums.items()}
  return means | scoring.differences(sums, pairs)


def finish(
  experiment: str,
  played: Played,
  protocol: Mapping[str, Any],
  metrics: Mapping[str, Estimate],
  published: Mapping[str, float],
) -> None:
  """Writes the results, and prints the published results below."""
  of_training = {
    **replaying.protocol(FLAGS.rer),
    **on_policy.protocol(FLAGS.ppo or FLAGS.varibad),
    **beliefs.protocol(),
    **flag_values("last_observation", "rer"),
  }
  if FLAGS.references_only:
    unused = ("meta_batch", "outer_optimizer", "outer_lr", "outer_schedule")
    of_training = dict.fromkeys(unused)
  report.finish(
    played.workdir,
    experiment,
    {
      **protocol,
      **of_training,
      **played.about,
      "published": published,
    },
    metrics,
    played.trained,
    steps=0 if FLAGS.references_only else None,
  )
  if published:
    print("\npublished: " + "  ".join(f"{k} {v}" for k, v in published.items()))
