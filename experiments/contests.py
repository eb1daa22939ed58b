"""Trained players and others on the same tasks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import on_policy, replaying, training, trial_plots
from experiments.flags import FLAGS, refuse
from experiments.replaying import Trainee
from experiments.stages import Stages
from metajax.evaluation import Estimate, estimate
from metajax.tasks.trials import (
  Player,
  Trials,
  play,
  with_last_observation,
)
from metajax.training import TrainState
from metajax.training.loop import Trained
from metajax.types import Params

flags.DEFINE_bool(
  "last_observation",
  False,
  "Show trained players the observation before, too.",
)

# A player of its parameter, and values to choose it from, by name.
Reference = tuple[Callable[[Any], Player], Mapping[str, Any]]
NO_CHOICE = {"": ()}


class Played(NamedTuple):
  """What came of all players on the same test tasks.

  Attributes:
    workdir: the run's folder.
    trained: the last state, and the seconds of all trainings.
    players: those that were trained, by name.
    rewards: `[tasks, steps]` by the player's name; "rer" is trained by replay,
      "rl2_ppo" on policy.
    about: for `results.json`: what was searched for the players, the seconds
      of each training, and after how many environment steps a trained player
      was as good as a reference on validation tasks.
  """

  workdir: Path
  trained: Trained
  players: dict[str, Player]
  rewards: dict[str, np.ndarray]
  about: dict[str, Any]


def play_all(
  experiment: str,
  tasks: Trials,
  references: Mapping[str, Reference],
  rival: str,
) -> Played:
  """Trains recurrent players, and lets them and the others play test tasks.

  Args:
    experiment: its name.
    tasks: what is played.
    references: players that need no training.
    rival: the one of them whose score the trained players are to reach.
  """
  refuse("learner", "task_chunk", "inner_steps", "inner_lr", "memory")
  seen = with_last_observation(tasks) if FLAGS.last_observation else tasks
  trainees = {"rer": replaying.trainee(seen)}
  if FLAGS.ppo:
    trainees["rl2_ppo"] = on_policy.trainee(seen)
  stages = Stages(experiment)
  rewards, seconds, players = {}, {}, {}
  for name, trainee in trainees.items():
    trained, rewards[name] = train(stages, name, trainee, seen)
    seconds[name] = trained.wall_seconds
    players[name] = trainee.player(trained.state.meta_params)
  chosen, levels = {}, {}
  for name, (make, grid) in references.items():
    best, levels[name], rewards[name] = search(make, grid, tasks)
    if len(grid) > 1:
      chosen[name] = best
  history = {name: progress(stages, name, tasks) for name in trainees}
  trial_plots.learning(
    stages.workdir / "learning.png",
    history,
    {name: levels[name] for name in levels if name != "random"},
    "environment steps",
    "reward of a task, validation",
  )
  about = {
    "parameters_of_players": chosen,
    "training_seconds": seconds,
    f"environment_steps_to_{rival}": {
      name: reached(points, levels[rival]) for name, points in history.items()
    },
  }
  return Played(stages.workdir, stages.total(), players, rewards, about)


def train(
  stages: Stages,
  name: str,
  trainee: Trainee,
  tasks: Trials,
  validate: Callable[[TrainState], dict[str, float]] = lambda _: {},
) -> tuple[Trained, np.ndarray]:
  """Trains a player; returns its rewards `[tasks, steps]` of test tasks, too.

  Logs its reward on validation tasks, and what `validate` says.
  """

  def rewards(params: Params, split: str) -> jax.Array:
    return scorer(tasks, split)(trainee.player(params))

  score = jax.jit(lambda params: rewards(params, "validation").sum(-1).mean())
  trained = stages.train(
    name,
    trainee.trainer,
    training.schedule(),
    FLAGS.meta_batch,
    validate=lambda state: (
      {"reward": float(score(state.meta_params))} | validate(state)
    ),
  )
  test = jax.jit(lambda params: rewards(params, "test"))
  return trained, np.asarray(test(trained.state.meta_params))


def progress(stages: Stages, name: str, tasks: Trials) -> dict[int, float]:
  """Returns the validation rewards of a training by environment steps."""
  per_step = FLAGS.meta_batch * tasks.num_steps
  rewards = stages.history(name, "validation/reward")
  return {step * per_step: reward for step, reward in rewards.items()}


def reached(rewards: Mapping[int, float], level: float) -> int | None:
  """Returns after how many environment steps a reward is first as high."""
  return next((s for s, reward in rewards.items() if reward >= level), None)


def scorer(tasks: Trials, split: str) -> Callable[[Player], jax.Array]:
  """Returns `player -> rewards [tasks, steps]`, always of the same tasks."""
  rng = training.evaluation_key(split)
  keys = jax.random.split(rng, FLAGS.eval_tasks)
  return lambda player: jax.vmap(lambda key: play(player, tasks, key).rewards)(
    keys
  )


def search(
  make: Callable[[Any], Player], grid: Mapping[str, Any], tasks: Trials
) -> tuple[str, float, np.ndarray]:
  """Chooses on validation tasks what `make` is given.

  Args:
    make: a player of the chosen value.
    grid: values to choose from, by name.
    tasks: what is played.

  Returns:
    The name of the best value, its mean total at validation, and its rewards
    `[tasks, steps]` at test.
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
  return best, totals[best], np.asarray(rewards["test"](grid[best]))


def totals(played: Played, *rivals: str) -> dict[str, Estimate]:
  """Means of the players' totals, and of the rivals' differences to "rer"."""
  sums = {name: r.sum(-1) for name, r in played.rewards.items()}
  return {name: estimate(s) for name, s in sums.items()} | {
    f"rer_minus_{name}": estimate(sums["rer"] - sums[name]) for name in rivals
  }


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
      **replaying.protocol(),
      **on_policy.protocol(),
      "last_observation": FLAGS.last_observation,
      **played.about,
      "published": published,
    },
    metrics,
    played.trained,
  )
  if published:
    print("\npublished: " + "  ".join(f"{k} {v}" for k, v in published.items()))
