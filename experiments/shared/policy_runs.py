"""A run of a policy learner: training, and returns after each inner step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.shared import policy_training
from metajax.evaluation import estimate
from metajax.models.mlp import MLP
from metajax.policies import gaussian_policy, played_tasks
from metajax.policies.rollouts import Rollouts
from metajax.runs import (
  folder,
  loggers,
  plots,
  report,
  rng_keys,
  scoring,
  training,
)
from metajax.runs.flags import FLAGS, define_integers, flag_values
from metajax.tasks.playable import PlayableTasks
from metajax.training import TrainState
from metajax.training.loop import Trained, fit
from metajax.types import Params

flags.DEFINE_integer("horizon", 100, "Largest length of an episode.", 1)
define_integers(
  "hidden", [64, 64], "Hidden units of each layer of the policy.", lower_bound=1
)
flags.DEFINE_integer("validation_tasks", 20, "Tasks of a validation.", 2)
flags.DEFINE_integer(
  "eval_episodes",
  40,
  "Episodes for each inner step in validation and test.",
  1,
)
# Flags of every training script that have no effect here.
UNUSED = ("learner", "task_chunk", "memory")
EVALUATED = range(4)  # Inner steps.


class Played(NamedTuple):
  """A training, and what the trained policy did in the test tasks.

  Attributes:
    workdir: the run's folder.
    trained: the last state, and the seconds.
    tasks: the test tasks, `[tasks, ...]`.
    rollouts: their episodes, `[tasks, K + 1, E, T, ...]`.
    untrained: those of the first parameters in the same tasks, if wanted.
  """

  workdir: Path
  trained: Trained
  tasks: Any
  rollouts: Rollouts
  untrained: Rollouts | None


def play_all(
  experiment: str, tasks: PlayableTasks, *, untrained: bool = False
) -> Played | None:
  """Trains a policy on the tasks, and plays the test tasks with it.

  Args:
    experiment: the name of the experiment.
    tasks: tasks of continuous actions.
    untrained: whether to play the test tasks without training, too.

  Returns:
    None if the run had finished before. Its results are then shown again.
  """
  tasks = policy_training.seen(tasks)
  policy = gaussian_policy(MLP(tasks.actions.size, FLAGS.hidden), tasks.actions)
  learner, trainer, rates = policy_training.build(policy, tasks)
  # One program for validation and test.
  play = played_tasks(
    learner,
    tasks,
    num_steps=EVALUATED[-1],
    num_episodes=FLAGS.eval_episodes,
    tasks_at_once=FLAGS.validation_tasks,
  )

  def validate(state: TrainState) -> dict[str, float]:
    key = rng_keys.evaluation_key("validation")
    _, rollouts = play(state.meta_params, key, FLAGS.validation_tasks)
    means = rollouts.returns.mean((0, 2))
    return {f"return_{k}_steps": float(x) for k, x in enumerate(means)}

  workdir = folder.start(experiment)
  if report.show_finished(workdir, saves_learner=False):
    return None
  trained = fit(
    trainer,
    rng_keys.init_key(),
    training.schedule(),
    workdir,
    tasks_per_step=FLAGS.meta_batch,
    validate=validate,
    rates=rates,
    loggers=loggers.by_flag(workdir),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )
  legend = {
    f"validation/return_{k}_steps": f"{k} step{'s'[: k != 1]}"
    for k in EVALUATED
  }
  legend["return_after"] = "training, after adaptation"
  plots.learning_curve(workdir, legend, "return of an episode")

  def test(params: Params) -> tuple[Any, Rollouts]:
    return play(params, rng_keys.evaluation_key("test"), FLAGS.eval_tasks)

  first = None
  if untrained:
    first = test(trainer.init(rng_keys.init_key()).meta_params)[1]
  return Played(workdir, trained, *test(trained.state.meta_params), first)


def finish(
  experiment: str,
  played: Played,
  protocol: Mapping[str, Any],
  published: Sequence[float] = (),
) -> None:
  """Writes the returns after each inner step, and prints published ones."""
  returns = _by_steps("return", played.rollouts)
  pairs = []
  if played.untrained is not None:
    untrained = _by_steps("untrained_return", played.untrained)
    pairs = list(zip(returns, untrained, strict=True))
    returns |= untrained
  report.finish(
    played.workdir,
    experiment,
    {
      **flag_values("horizon", "hidden", "eval_episodes"),
      **policy_training.protocol(),
      **protocol,
      **({"published": dict(enumerate(published))} if published else {}),
    },
    {name: estimate(values) for name, values in returns.items()}
    | scoring.differences(returns, pairs),
    played.trained,
  )
  if published:
    print("\npublished: " + "  ".join(map(str, published)))


def _by_steps(name: str, rollouts: Rollouts) -> dict[str, np.ndarray]:
  """Returns the mean returns of each task, by the number of inner steps."""
  means = np.asarray(rollouts.returns).mean(-1)
  return {f"{name}_{k}_steps": x for k, x in enumerate(means.T)}
