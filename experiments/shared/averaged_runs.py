"""Runs that store averages of their parameters, and soups of such runs."""

from collections.abc import Callable, Mapping

import optax
from absl import flags

from metajax import aggregation
from metajax.runs import training
from metajax.runs.flags import FLAGS
from metajax.runs.stages import Stages
from metajax.types import MetaLearner, Params, TaskFamily

flags.DEFINE_integer(
  "snapshots",
  5,
  "Number of snapshots of the parameters, from the last half of a run.",
  lower_bound=2,
)
flags.DEFINE_float(
  "ema_decay",
  0.99,
  "Decay per step of the moving average of the parameters.",
  lower_bound=0.0,
)
flags.register_validator("ema_decay", lambda x: x < 1, "must be below 1")


def train(
  stages: Stages, learner: MetaLearner, tasks: TaskFamily, chunk: int, seed: int
) -> tuple[Params, dict[str, Params]]:
  """Returns a run's last parameters, and its averages by name."""
  # Averages are over the last half of a run, when it is past the beginning.
  period = max(1, FLAGS.steps // (2 * FLAGS.snapshots))
  averages = {
    "ema": aggregation.ema(FLAGS.ema_decay),
    "swa": aggregation.swa(FLAGS.steps // 2, 1),
    "snapshots": aggregation.recent(FLAGS.snapshots, period),
  }
  optimizer = aggregation.averaging(optax.adam(FLAGS.outer_lr), averages)
  trainer = training.trainer(
    learner, tasks, seed=seed, optimizer=optimizer, task_chunk=chunk
  )
  trained = stages.train(
    f"member_{seed}",
    trainer,
    training.schedule(),
    FLAGS.meta_batch,
    seed=seed,
  )
  states = trained.state.opt_state.averages
  values = {name: a.value(states[name]) for name, a in averages.items()}
  return trained.state.meta_params, values


def averages_and_soups(
  validated: Callable[[Params], float],
  averages: Mapping[str, Params],
  seeds: Params,
  aligned: Params,
) -> dict[str, Params]:
  """Returns averages of weights by name: of one run, of snapshots, of runs.

  Args:
    validated: the score by which greedy soups choose.
    averages: the averages of the first run, from `train`; may be empty.
    seeds: the stack of all runs.
    aligned: the stack of all runs with matched units.
  """

  def greedy(stack: Params) -> Params:
    params, chosen = aggregation.greedy_soup(stack, validated)
    print(f"greedy soup of {chosen}")
    return params

  models = {}
  if averages:
    snapshots = averages["snapshots"]
    models["ema"], models["swa"] = averages["ema"], averages["swa"]
    models["soup_of_snapshots"] = aggregation.weighted_average(snapshots)
    models["greedy_soup_of_snapshots"] = greedy(snapshots)
  models["soup_of_seeds"] = aggregation.weighted_average(seeds)
  models["soup_of_aligned_seeds"] = aggregation.weighted_average(aligned)
  models["greedy_soup_of_seeds"] = greedy(seeds)
  return models
