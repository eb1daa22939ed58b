"""Few-shot images by supervised pre-training and a head for each task.

  python -m experiments.pretrain --data=cifar_fs --data_dir=DIR

The script trains a network to classify all training classes. It then classifies
the test tasks by heads on the network's features: logistic regression, ridge
regression, nearest mean and nearest direction. `--fine_tune_steps=25` also
fine-tunes the whole network. This is RFS-simple of Tian et al. (2020): SGD for
100 epochs (60,000 steps of 64 images on CIFAR-FS), a step size that is divided
by ten after 60% and 80% of the steps, augmented training images, and heads
fitted to five augmented copies of the support.
`--generations=1` is RFS-distill: a second network learns from the labels and
from the first network (born again). The ensemble of all networks is tested too.

On CIFAR-FS, `--steps=42000 --color_jitter=0` took two hours on one to two CPU
cores: 61.2% with one shot, 78.4% with five. The paper has 62.7% and 78.7%, by
60,000 steps and with changes of colour. `--steps=36000 --generations=1` took
two hours on one core: 60.2%, and 61.2% by the second network.

With the --workdir of a run that has ended, and other values of --shots, --ways,
--query_shots or the flags of fine-tuning, the networks are tested without
training. More --generations add networks. `--averages` tests averages of the
weights over a training, too.
"""

import functools

from absl import flags

from experiments.shared import (
  image_networks,
  pretrained_averages,
  pretrained_heads,
  pretraining,
)
from experiments.shared.pretrained_heads import SHOWN
from metajax.evaluation import Estimate, estimate
from metajax.losses import accuracy
from metajax.runs import breadth, plots, report, rng_keys, scoring, training
from metajax.runs.flags import FLAGS, define_data_dir, flag_values
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.training.logging import waiting
from metajax.types import MetaLearner, Params, TaskFamily

define_data_dir(", or of the images of another --data")
flags.DEFINE_integer(
  "generations",
  0,
  "Number of further networks, each trained with the one before as its "
  "teacher (born-again networks).",
  lower_bound=0,
)
flags.DEFINE_integer(
  "validation_tasks", 200, "Tasks of a validation.", lower_bound=2
)
DEFAULTS = {
  "steps": 60_000,
  "meta_batch": 64,
  "outer_lr": 0.05,
  "normalization": "running",
  "query_shots": 15,
  "augment": True,
  "log_every": 600,
  "eval_every": 3000,
  "checkpoint_every": 3000,
}
UNUSED = (
  "learner inner_steps inner_lr memory task_chunk outer_schedule train_ways "
  "eval_query_shots rotations standardize eval_data eval_data_dir train_shots "
  "stream stream_workers"
).split()
# A network that is trained does not depend on them.
AFTERWARDS = (
  "ways shots query_shots fine_tune_steps fine_tune_lr generations".split()
)
METRICS = {"accuracy": accuracy}


def main() -> None:
  with waiting("loading data"):
    data = pretraining.load()
  learners = pretrained_heads.learners(data, FLAGS.ways)
  cosine, shown = learners["cosine"], learners[SHOWN]
  runs = Stages(
    "pretrain",
    saves_learner=True,
    evaluation=AFTERWARDS,
    data=data.fingerprint,
  )

  @functools.cache  # It compiles once for all networks.
  def scorer(learner: MetaLearner, split: str, number: int):
    tasks = data.tasks[split]
    return scoring.task_scorer(learner, tasks, METRICS, split, number)

  def scores(learner: MetaLearner, params: Params, split: str, number: int):
    return scorer(learner, split, number)(params)["accuracy"]

  def scored(ways: int, tasks: TaskFamily) -> Estimate:
    learner = pretrained_heads.learners(data, ways)[SHOWN]
    score = scoring.scorer(learner, tasks, METRICS, "test", FLAGS.eval_tasks)
    return score(networks[-1])["accuracy"]

  def validate(state):
    params = state.meta_params
    found = scores(cosine, params, "validation", FLAGS.validation_tasks)
    return {"accuracy": float(found.mean())}

  networks: list[Params] = []
  averages: list[dict[str, Params]] = []
  for generation in range(FLAGS.generations + 1):
    trained = runs.train(
      f"generation_{generation}",
      pretraining.trainer(
        data,
        generation,
        networks[-1] if networks else None,
        pretrained_averages.averaging,
      ),
      training.schedule(),
      FLAGS.meta_batch,
      seed=generation,
      validate=validate,
      rates=pretraining.rates,
    )
    networks.append(trained.state.meta_params)
    averages.append(
      pretrained_averages.networks(data, trained.state, generation)
    )
  contenders, pairs = pretrained_heads.contenders(learners, networks, averages)
  values = {
    name: scores(learner, params, "test", FLAGS.eval_tasks)
    for name, (learner, params) in contenders.items()
  }
  plots.learning_curve(
    runs.workdir / f"generation_{FLAGS.generations}",
    {
      "accuracy": "training, all classes",
      "validation/accuracy": "validation tasks",
    },
    "accuracy",
    xlabel="steps",
    folder=runs.workdir,
  )
  plots.image_episodes(
    runs.workdir / "episodes.png",
    shown,
    networks[-1],
    data.tasks["test"],
    rng_keys.evaluation_key("picture"),
    FLAGS.ways,
  )
  others = {}
  if FLAGS.pictures == "all":
    others = breadth.test(
      runs.workdir,
      data.test,
      scored,
      shown,
      networks[-1],
      ways=FLAGS.ways,
      shots=FLAGS.shots,
      any_ways=True,
    )
  report.finish(
    runs.workdir,
    "pretrain",
    {
      **flag_values("ways", "shots", "generations"),
      **flag_values("fine_tune_steps", "fine_tune_lr"),
      **data.protocol,
      **image_networks.protocol(),
      "outer_optimizer": "sgd, momentum 0.9, weight decay 5e-4",
      "outer_schedule": "divided by 10 after 60% and 80%",
      "batch_size": FLAGS.meta_batch,
    },
    {
      **{name: estimate(value) for name, value in values.items()},
      **scoring.differences(values, pairs),
      **others,
    },
    pretraining.without_head(data, runs.total()),
    # The nearest mean on the same features. It takes any number of classes.
    recipe=pretraining.recipe(),
    inputs=pretraining.example(data),
    channels=data.channels,
  )


if __name__ == "__main__":
  # Some of what it compares factorises matrices.
  run(main, pretraining.PRESETS, DEFAULTS, unused=UNUSED, spare_threads=True)
