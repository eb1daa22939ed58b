"""Trained players and others on the same tasks."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.shared import on_policy, replaying, trial_plots
from experiments.shared.replaying import Trainee
from metajax.evaluation import Estimate, estimate
from metajax.runs import report, rng_keys, training
from metajax.runs.flags import FLAGS
from metajax.runs.stages import Stages
from metajax.tasks.trials import (
  Player,
  Trials,
  play,
  with_last_observation,
)
from metajax.training import TrainState
from metajax.training.logging import waiting
from metajax.training.loop import Trained
from metajax.types import Params

flags.DEFINE_bool(
  "last_observation",
  False,
  "Show trained players the observation before, too.",
)

flags.DEFINE_bool(
  "references_only", False, "Train nothing: only the players that need none."
)

NO_CHOICE = {"": ()}
# Tasks that a reference plays at once, so that its samples stay in the cache.
TASKS_AT_ONCE = 50
# Numbers of samples of optimistic players; Duan et al. tried all of 1 to 20.
SAMPLES = (1, 2, 5, 10, 20)
AS_PUBLISHED = "_as_published"
# Of a published player whose parameter is chosen as those of all others are.
ON_OTHERS = "_chosen_on_validation"


class Reference(NamedTuple):
  """A player that needs no training.

  Attributes:
    make: the player of its parameter.
    grid: values to choose the parameter from, by name. Integers are known
      when the player is built, numbers of samples, say.
    on_test: choose by the test tasks, too, as a paper did.
  """

  make: Callable[[Any], Player]
  grid: Mapping[str, Any] = NO_CHOICE
  on_test: bool = False


class Played(NamedTuple):
  """What came of all players on the same test tasks.

  Attributes:
    workdir: the run's folder.
    trained: the last state, and the seconds of all trainings; without any, no
      state, and the seconds of the references.
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
  seen = with_last_observation(tasks) if FLAGS.last_observation else tasks
  trainees = {}
  if not FLAGS.references_only:
    trainees["rer"] = replaying.trainee(seen)
    if FLAGS.ppo:
      trainees["rl2_ppo"] = on_policy.trainee(seen)
  stages = Stages(experiment)
  rewards, seconds, players = {}, {}, {}
  for name, trainee in trainees.items():
    trained, rewards[name] = train(stages, name, trainee, seen)
    seconds[name] = trained.wall_seconds
    players[name] = trainee.player(trained.state.meta_params)
  chosen, levels, of_references = {}, {}, {}
  for name, reference in references.items():
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
  if not trainees:
    total = sum(of_references.values())
    trained = Trained(None, total, 0.0)
    about["seconds_of_players"] = of_references
    return Played(stages.workdir, trained, players, rewards, about)
  history = {name: progress(stages, name, tasks) for name in trainees}
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
    rates=trainee.rates,
  )
  test = jax.jit(lambda params: rewards(params, "test"))
  with waiting("evaluating on test tasks"):
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
  rng = rng_keys.evaluation_key(split)
  keys = jax.random.split(rng, FLAGS.eval_tasks)
  return lambda player: jax.vmap(lambda key: play(player, tasks, key).rewards)(
    keys
  )


class Found(NamedTuple):
  """The best values of a grid.

  Attributes:
    best: the name of the value that is best on validation tasks.
    level: its mean total there.
    rewards: its own `[tasks, steps]` on test tasks.
    best_of_test: the name of the value that is best on test tasks.
    rewards_of_test: its rewards there.
  """

  best: str
  level: float
  rewards: np.ndarray
  best_of_test: str
  rewards_of_test: np.ndarray


def search(reference: Reference, tasks: Trials) -> Found:
  """Chooses a reference's value on validation tasks, and on test tasks."""

  def rewards(split: str, value: Any) -> np.ndarray:
    keys = jax.random.split(rng_keys.evaluation_key(split), FLAGS.eval_tasks)
    static = isinstance(value, int)
    return np.asarray((fixed if static else traced)(value, keys))

  def playing(value: Any, keys: jax.Array) -> jax.Array:
    player = reference.make(value)
    return jax.lax.map(
      lambda key: play(player, tasks, key).rewards,
      keys,
      batch_size=TASKS_AT_ONCE,
    )

  fixed = jax.jit(playing, static_argnums=0)
  traced = jax.jit(playing)

  levels = {
    name: total(rewards("validation", value))
    for name, value in reference.grid.items()
  }
  best = max(levels, key=lambda name: levels[name])
  tested = {
    name: rewards("test", reference.grid[name])
    for name in (reference.grid if reference.on_test else [best])
  }
  best_of_test = max(tested, key=lambda name: total(tested[name]))
  return Found(
    best,
    levels[best],
    tested[best],
    best_of_test,
    tested[best_of_test],
  )


def total(rewards: np.ndarray) -> float:
  """Returns the mean total of `[tasks, steps]`."""
  return float(rewards.sum(-1, dtype=np.float64).mean())


def drawn(played: Played) -> dict[str, np.ndarray]:
  """Returns the rewards that pictures show: not of players as published."""
  return {
    name: rewards
    for name, rewards in played.rewards.items()
    if AS_PUBLISHED not in name
  }


def totals(played: Played, *rivals: str) -> dict[str, Estimate]:
  """Means of the players' totals, and of the rivals' differences to "rer"."""
  sums = {
    name: r.sum(-1, dtype=np.float64) for name, r in played.rewards.items()
  }
  if "rer" not in sums:
    rivals = ()
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
  of_training = {
    **replaying.protocol(),
    **on_policy.protocol(),
    "last_observation": FLAGS.last_observation,
  }
  report.finish(
    played.workdir,
    experiment,
    {
      **protocol,
      **({} if FLAGS.references_only else of_training),
      **played.about,
      "published": published,
    },
    metrics,
    played.trained,
    steps=0 if FLAGS.references_only else None,
  )
  if published:
    print("\npublished: " + "  ".join(f"{k} {v}" for k, v in published.items()))
