"""Few-shot images by MAML (Finn et al. 2017, section 5.2 and appendix A.1).

  python -m experiments.few_shot --data_dir=DIR

The script trains 5-way 1-shot Omniglot for about 10 minutes on 2 cores. It
reports the accuracy on 600 tasks of characters that are not in the training.
The default has many small steps of 8 tasks and the step sizes 0.4 (inner) and
0.003 (outer). MAML and similar learners learn faster at first with them.
`--preset=5w1s` is the paper's protocol (32 tasks, step sizes that are 2.0 and
0.001 here), with the 40,000 meta-steps of its code. The paper has 98.7 +- 0.4.
`--learner=NAME` trains another learner than MAML.

DIR may be any folder of images with a sub-folder for each class, or with train,
val and test folders of such sub-folders, or with tables that name the splits.
`--data=cifar_fs`, `fc100` and `mini_imagenet` are named data sets.
`--eval_data=NAME` tests on another data set than that of the training. See
docs/data.md. `--init_from=RUN` starts with the network of an earlier run, such
as one of `experiments.pretrain`. `--pictures=all` also tests other numbers of
shots and ways, and draws the classes that are confused most.
"""

import functools

import jax
from absl import flags

from experiments.shared import (
  cifar_presets,
  image_data,
  image_networks,
  image_sets,
  image_tests,
  omniglot_presets,
)
from metajax import recipes
from metajax.learners import ANY_WAYS
from metajax.runs import (
  folder,
  inspection,
  learner_options,
  report,
  rng_keys,
  scoring,
  seeds,
  training,
  warm_start,
)
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.runs.script import run
from metajax.training.logging import waiting

define_data_dir(", or of the images of another --data")
flags.DEFINE_integer(
  "eval_inner_steps",
  3,
  "Number of inner steps at test. Learners with parameters for each step take "
  "at most --inner_steps.",
  lower_bound=0,
)
flags.DEFINE_bool(
  "first_order",
  False,
  "Use first-order meta-gradients (FOMAML) in place of MAML's.",
)
flags.DEFINE_integer(
  "validation_tasks", 200, "Number of tasks of a validation.", lower_bound=2
)
DEFAULTS = {
  "steps": 20_000,
  "meta_batch": 8,
  "outer_schedule": "cosine",
  "inner_lr": 0.4,
  "outer_lr": 3e-3,
  "log_every": 500,
  "eval_every": 2500,
  "checkpoint_every": 2500,
}


def main() -> None:
  name = FLAGS.learner
  if FLAGS.first_order:
    if name not in ("maml", "fomaml"):
      raise ValueError(
        f"--first_order is for --learner=maml, not {name}: leave it out."
      )
    name = "fomaml"
  network = image_networks.network(name)
  steps, ways = learner_options.eval_steps(name), FLAGS.ways
  train_ways = FLAGS.train_ways or ways
  if train_ways != ways and name not in ANY_WAYS:
    raise ValueError(
      f"--train_ways={train_ways}: must be --ways={ways} for --learner={name}, "
      "whose network has an output for each class."
    )
  tested, trained_as = (
    learner_options.recipe(name, network, "cross_entropy", outputs, steps)
    for outputs in (ways, train_ways)
  )
  learner = recipes.build(trained_as, image_tests.METRICS)
  image_sets.check_start(FLAGS.init_from)
  learner = warm_start.warm_started(learner, network, FLAGS.init_from)
  with waiting("loading data"):
    data = image_data.load(ways, train_ways)
  # The test after so many steps has the same program.
  validate = scoring.stepwise_scorer(
    name,
    functools.partial(image_tests.build, tested),
    data.splits.validation,
    image_tests.METRICS,
    "validation",
    FLAGS.validation_tasks,
  )
  validation = seeds.over_seeds(lambda params: validate(params, steps))
  trainer = training.trainer(
    learner,
    data.splits.train,
    rule=FLAGS.outer_optimizer,
    skip_non_finite=FLAGS.skip_non_finite,
    rng=seeds.keys(rng_keys.task_key),
    # A recipe begins at random weights.
    recipe=None if FLAGS.init_from else trained_as,
    metrics=image_tests.METRICS,
  )
  workdir = folder.start(
    "few_shot",
    data.fingerprint,
    eval_data=data.eval_fingerprint,
    goes_on=True,
  )
  if FLAGS.replay_step is not None:
    inspection.replay(workdir, trainer, learner, data.splits.train)
    return
  if report.show_finished(workdir):
    return
  trained = training.train(
    trainer,
    workdir,
    lambda params: {"accuracy": validation(params)["accuracy"].mean},
    rng=seeds.keys(rng_keys.init_key),
  )
  metrics = image_tests.test(workdir, tested, data, trained.state.meta_params)
  report.finish(
    workdir,
    "few_shot",
    {
      **learner_options.protocol(name),
      "num_seeds": FLAGS.num_seeds,
      **data.protocol,
      **image_networks.protocol(),
      "eval_inner_steps": steps,
      "inner_loss": "mean cross-entropy",
      "init_from": FLAGS.init_from,
    },
    metrics,
    trained,
    recipe=tested,
    inverted=data.inverted,
    channels=data.channels,
    inputs=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      jax.eval_shape(data.splits.test, jax.random.key(0)).support.inputs,
    ),
  )


if __name__ == "__main__":
  run(main, omniglot_presets.PRESETS | cifar_presets.PRESETS, DEFAULTS)
