"""Trained players and others on the same tasks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import on_policy, plots, replaying, training
from experiments.flags import FLAGS, refuse
from experiments.stages import Stages
from metajax.evaluation import Estimate, estimate
from metajax.tasks.trials import Player, Trials, play
from metajax.training.logging import read_jsonl
from metajax.training.loop import Trained

# A player of its parameter, and values to choose it from, by name.
Reference = tuple[Callable[[Any], Player], Mapping[str, Any]]
NO_CHOICE = {"": ()}


class Played(NamedTuple):
  """What came of all players on the same test tasks.

  Attributes:
    workdir: the run's folder.
    trained: the last state, and the seconds of all trainings.
    rewards: `[tasks, steps]` by the player's name; "rer" is trained by replay,
      "rl2_ppo" on policy.
    about: for `results.json`: what was searched for the players, the seconds
      of each training, and after how many environment steps a trained player
      was as good as a reference on validation tasks.
  """

  workdir: Path
  trained: Trained
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
  trainees = {"rer": replaying.trainee(tasks)}
  if FLAGS.ppo:
    trainees["rl2_ppo"] = on_policy.trainee(tasks)
  stages = Stages(experiment)
  validation, test = (scorer(tasks, s) for s in ("validation", "test"))
  rewards, seconds = {}, {}
  for name, trainee in trainees.items():
    score = jax.jit(lambda p, t=trainee: validation(t.player(p)).sum(-1).mean())
    trained = stages.train(
      name,
      trainee.trainer,
      training.schedule(),
      FLAGS.meta_batch,
      validate=lambda state, f=score: {"reward": float(f(state.meta_params))},
    )
    seconds[name] = trained.wall_seconds
    final = jax.jit(lambda params, t=trainee: test(t.player(params)))
    rewards[name] = np.asarray(final(trained.state.meta_params))
  chosen, levels = {}, {}
  for name, (make, grid) in references.items():
    best, levels[name], rewards[name] = search(make, grid, tasks)
    if len(grid) > 1:
      chosen[name] = best
  per_step = FLAGS.meta_batch * tasks.num_steps  # Of the environment.
  history = {
    name: {s * per_step: r for s, r in _validated(stages.workdir / name)}
    for name in trainees
  }
  plots.learning(
    stages.workdir / "learning.png",
    history,
    {name: levels[name] for name in levels if name != "random"},
    "environment steps",
    "reward of a task, validation",
  )
  reached = {
    name: next((s for s, r in points.items() if r >= levels[rival]), None)
    for name, points in history.items()
  }
  about = {
    "parameters_of_players": chosen,
    "training_seconds": seconds,
    f"environment_steps_to_{rival}": reached,
  }
  return Played(stages.workdir, stages.total(), rewards, about)


def _validated(folder: Path) -> list[tuple[int, float]]:
  """Reads (step, reward) of the validations of a training."""
  name = "validation/reward"
  lines = read_jsonl(folder / "metrics.jsonl")
  return [(x["step"], float(x[name])) for x in lines if name in x]


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
      **played.about,
      "published": published,
    },
    metrics,
    played.trained,
  )
  if published:
    print("\npublished: " + "  ".join(f"{k} {v}" for k, v in published.items()))
