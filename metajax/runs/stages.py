"""Experiments of several trainings, each in a sub-folder of the workdir."""

import sys
from collections.abc import Callable, Mapping, Sequence

from metajax.runs import folder, loggers, report, rng_keys, training
from metajax.runs.flags import FLAGS
from metajax.training import Trainer, TrainState
from metajax.training.logging import read_jsonl
from metajax.training.loop import Schedule, Trained, fit
from metajax.types import MetaLearner, Params, TaskFamily


def reached(history: Mapping[int, float], level: float) -> int | None:
  """Returns the first step whose value is at least `level`, or None."""
  return next((at for at, value in history.items() if value >= level), None)


class Stages:
  """Runs trainings one after the other. Reads trainings that are done already.

  Attributes:
    workdir: the folder of the experiment.
  """

  def __init__(
    self,
    experiment: str,
    *,
    saves_learner: bool = False,
    evaluation: Sequence[str] = (),
    trained_by: Sequence[str] = (),
    data: str | None = None,
  ):
    """Makes or reopens the folder of the run that the flags describe.

    Args:
      experiment: the name of the experiment.
      saves_learner: whether the script saves a learner at its end.
      evaluation: flags of this script on which a stage that is trained does
        not depend. A run that has ended is evaluated again if they, or the
        flags `folder.EVALUATION`, have other values.
      trained_by: flags of `folder.EVALUATION` on which the training of a stage
        depends, such as the seed of a split. Other values are refused.
      data: identifies the data in the configuration, instead of --data_dir.

    Raises:
      SystemExit: if the run has ended before, once its results are shown.
      ValueError: if the folder holds another run.
    """
    free = {*folder.EVALUATION, *evaluation} - {*trained_by}
    self.workdir = folder.start(experiment, data, evaluation=sorted(free))
    if report.show_finished(self.workdir, saves_learner=saves_learner):
      sys.exit(0)
    self._done: list[Trained] = []

  def train(
    self,
    name: str,
    trainer: Trainer,
    schedule: Schedule,
    tasks_per_step: int,
    *,
    seed: int = 0,
    validate: Callable[[TrainState], dict[str, float]] | None = None,
    rates: training.Rates | None = None,
  ) -> Trained:
    """Trains to the end of the schedule in the sub-folder `name`.

    See `metajax.training.loop.fit` for `validate` and `rates`.
    """
    print(f"{name}:", file=sys.stderr)
    folder = self.workdir / name
    folder.mkdir(exist_ok=True)
    trained = fit(
      trainer,
      rng_keys.init_key(seed),
      schedule,
      folder,
      tasks_per_step=tasks_per_step,
      validate=validate,
      rates=rates,
      loggers=loggers.by_flag(self.workdir, name),
      must_save=FLAGS.must_save,
      stall_seconds=FLAGS.stall_seconds,
    )
    self._done.append(trained)
    return trained

  def meta_train(
    self,
    name: str,
    learner: MetaLearner,
    tasks: TaskFamily,
    *,
    seed: int = 0,
    rule: str = "adam",
  ) -> Params:
    """Meta-trains as the flags say, with --seed plus `seed`."""
    schedule = training.schedule()
    trainer = training.trainer(learner, tasks, seed=seed, rule=rule)
    trained = self.train(
      name,
      trainer,
      schedule,
      FLAGS.meta_batch,
      seed=seed,
      rates=training.outer_rates(),
    )
    return trained.state.meta_params

  def history(self, name: str, metric: str) -> dict[int, float]:
    """Returns the logged values of a stage's metric, by meta-step."""
    lines = read_jsonl(self.workdir / name / "metrics.jsonl")
    return {x["step"]: float(x[metric]) for x in lines if metric in x}

  def total(self) -> Trained:
    """Returns the last state, and the sum of the seconds of all stages."""
    return Trained(
      self._done[-1].state,
      sum(t.wall_seconds for t in self._done),
      sum(t.compile_seconds for t in self._done),
      sum(t.skipped_steps for t in self._done),
    )
