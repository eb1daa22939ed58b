"""Omniglot as sequences: a recurrent network learns new characters as it reads.

  python -m experiments.rer_omniglot --data_dir=DIR

is the protocol of Santoro et al. (2016, section 4.1): 5 new characters, 50
drawings in random order, each shown with the label of the one before, and the
accuracy at the 1st, 2nd, 5th and 10th presentation of a character. The network
is trained three times: on new tasks in every step ("fresh"), on a tenth as many
tasks, which are kept and replayed ("replayed"), and on that tenth once
("scarce").
"""

from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import numpy as np
from absl import flags

from experiments.shared.shards import num_shards
from metajax.evaluation import Estimate, estimate
from metajax.learners import recurrent, sequence_learner
from metajax.losses import accuracy, accuracy_by_presentation, cross_entropy
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.recurrent import Cell
from metajax.replay import EpisodeReplay, episode_replay_trainer
from metajax.runs import plots, report, rng_keys, training
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks import omniglot
from metajax.training import Trainer
from metajax.training.logging import waiting
from metajax.types import Array, Model, Params, PRNGKey, TaskFamily

define_data_dir()
flags.DEFINE_integer("ways", 5, "Characters of a task.", lower_bound=2)
flags.DEFINE_integer(
  "presentations", 10, "Drawings of each character.", lower_bound=2
)
flags.DEFINE_enum(
  "encoder",
  "conv4",
  ["conv4", "pixels"],
  "What the recurrent network reads: features of conv4, trained with it, or "
  "pixels, as in the paper.",
)
flags.DEFINE_integer("filters", 32, "Channels of conv4.", lower_bound=1)
flags.DEFINE_enum("cell", "delta", get_args(Cell), "Recurrent cell.")
flags.DEFINE_integer(
  "units", 128, "Units of the recurrent network.", lower_bound=1
)
flags.DEFINE_integer(
  "replays", 10, "How often a replayed task is learned from.", lower_bound=1
)
flags.DEFINE_integer("capacity", 512, "Tasks that are kept.", lower_bound=1)
DEFAULTS = {
  "steps": 2000,
  "meta_batch": 20,
  "outer_schedule": "cosine",
  "log_every": 200,
  "eval_every": 500,
}

IMAGE_SIZE = 20  # As in the paper.
# Percent in the paper's table 1, one-hot labels, by presentation.
PUBLISHED = {"mann": {2: 82.8, 5: 94.9}}
SHOWN = (1, 2, 5, 10)


def main() -> None:
  if FLAGS.meta_batch % FLAGS.replays:
    raise ValueError(
      f"--replays={FLAGS.replays}: must divide --meta_batch="
      f"{FLAGS.meta_batch}, the tasks of a step."
    )
  kept = replay()
  with waiting("loading data"):
    splits = omniglot(
      FLAGS.data_dir,
      ways=FLAGS.ways,
      shots=FLAGS.presentations,
      query_shots=1,
      image_size=IMAGE_SIZE,
    )
  validation = scorer(splits.validation, "validation", 200)
  test = scorer(splits.test, "test", FLAGS.eval_tasks)
  all_plans = plans(splits.train, kept)
  runs, values = Stages("rer_omniglot"), {}
  for name, plan in all_plans.items():
    trained = runs.train(
      name,
      plan.trainer,
      training.schedule()._replace(num_steps=plan.steps),
      FLAGS.meta_batch,
      validate=lambda state: {
        "second": float(validation(state.meta_params)[:, 1].mean())
      },
      rates=training.outer_rates(),
    )
    with waiting("evaluating on test tasks"):
      values[name] = 100 * np.asarray(test(trained.state.meta_params))
  shown = [k for k in SHOWN if k <= FLAGS.presentations]
  metrics: dict[str, Estimate] = {
    f"{name}_{k}": estimate(v[:, k - 1])
    for name, v in values.items()
    for k in shown
  }
  for other in ("fresh", "scarce"):
    metrics[f"replayed_minus_{other}_{shown[-1]}"] = estimate(
      (values["replayed"] - values[other])[:, shown[-1] - 1]
    )
  plots.curves(
    runs.workdir / "presentations.png",
    {
      name: {k + 1: estimate(v[:, k]) for k in range(FLAGS.presentations)}
      for name, v in values.items()
    },
    "presentation of a character",
    "accuracy in percent",
  )
  report.finish(
    runs.workdir,
    "rer_omniglot",
    {
      "ways": FLAGS.ways,
      "presentations": FLAGS.presentations,
      "image_size": IMAGE_SIZE,
      "encoder": FLAGS.encoder,
      "filters": FLAGS.filters,
      "cell": FLAGS.cell,
      "units": FLAGS.units,
      "normalization": "group" if FLAGS.encoder == "conv4" else "none",
      "transductive": False,
      "replays": FLAGS.replays,
      "capacity": FLAGS.capacity,
      "shards": FLAGS.shards,
      "tasks": {k: p.tasks for k, p in all_plans.items()},
      "published": PUBLISHED,
    },
    metrics,
    runs.total(),
  )


def replay() -> EpisodeReplay:
  new = FLAGS.meta_batch // FLAGS.replays
  capacity = max(FLAGS.meta_batch, FLAGS.capacity)
  shards = num_shards(
    **{"--meta_batch over --replays": new, "--capacity": capacity}
  )
  return EpisodeReplay(new, FLAGS.meta_batch, capacity, shards)


class Plan(NamedTuple):
  """One of the trainings: for how many steps, on how many tasks in all."""

  trainer: Trainer
  steps: int
  tasks: int


def plans(tasks: TaskFamily, kept: EpisodeReplay) -> dict[str, Plan]:
  learner = recurrent(
    encoder(), cross_entropy, metrics={"accuracy": accuracy}, **sizes()
  )
  few = max(1, FLAGS.steps // FLAGS.replays)
  fresh = training.trainer(learner, tasks)
  replayed = episode_replay_trainer(
    learner,
    training.outer_optimizer(FLAGS.outer_schedule),
    tasks,
    kept,
    rng=rng_keys.task_key(),
  )
  return {
    "fresh": Plan(fresh, FLAGS.steps, FLAGS.steps * FLAGS.meta_batch),
    "replayed": Plan(replayed, FLAGS.steps, FLAGS.steps * kept.new),
    "scarce": Plan(fresh, few, few * FLAGS.meta_batch),
  }


def encoder() -> Model:
  if FLAGS.encoder == "pixels":
    return MLP(None, ())
  # By the statistics of one image, so that none sees those to come.
  return conv4(None, filters=FLAGS.filters, normalization="group")


def sizes() -> dict:
  return {
    "num_outputs": FLAGS.ways,
    "units": FLAGS.units,
    "cell": FLAGS.cell,
  }


def scorer(
  family: TaskFamily, split: str, num_tasks: int
) -> Callable[[Params], Array]:
  """Returns `params -> accuracies [tasks, presentations]` on fixed tasks."""
  reader = sequence_learner(encoder(), **sizes())
  keys = jax.random.split(rng_keys.evaluation_key(split), num_tasks)

  def one(params: Params, family: TaskFamily, key: PRNGKey) -> Array:
    sequence = family(key).support
    nothing = reader.start(params, sequence.inputs)
    logits, _ = reader.read(params, nothing, sequence)
    accuracies = accuracy_by_presentation(logits, sequence.targets)
    return accuracies[: FLAGS.presentations]

  @jax.jit
  def score(params: Params, family: TaskFamily) -> Array:
    return jax.lax.map(lambda k: one(params, family, k), keys, batch_size=20)

  return lambda params: score(params, family)


if __name__ == "__main__":
  run(
    main,
    defaults=DEFAULTS,
    needs=("flashbax",),
    unused=("learner", "task_chunk", "inner_steps", "inner_lr", "memory"),
  )
