"""Characters learned in context, by networks that read them in order.

  python -m experiments.context_classify --learner=mann --data_dir=DIR

`--protocol=presentations` is that of Santoro et al. (2016, section 4.1): a task
is 50 drawings of 5 new characters in random order, each with its label after
it. The script reports the accuracy at the 1st, 2nd, 5th and 10th presentation
of a character. `--protocol=few_shot` is that of Mishra et al. (2018, section
5.1): a support of one drawing of each character, then a query. The presets are
these protocols. `--preset=santoro` has the paper's 100,000 tasks.

All learners have the same encoder, conv4, which is trained with them.
`--encoder=none` gives them pixels, as in the first paper. MANN and SNAIL have
the sizes of their papers. `--data` and `--data_dir` take other
images, as in `few_shot`. With `--preset=5w1s --meta_batch=16`, a transformer
gets 93.4% by `--learner=transformer --steps=2500 --outer_lr=1e-3`, and SNAIL
82.2% by `--learner=snail --steps=1500 --outer_lr=5e-4`, in 16 minutes.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.shared import image_data, presentations
from metajax import recipes
from metajax.context import READERS, build_reader
from metajax.context.sequences import WIDTHS
from metajax.evaluation import estimate
from metajax.learners import with_encoder
from metajax.losses import accuracy
from metajax.runs import folder, plots, report, scoring, training
from metajax.runs.flags import FLAGS, define_data_dir, flag_values, refuse
from metajax.runs.script import run
from metajax.training.logging import waiting
from metajax.types import Params

define_data_dir(", or of the images of another --data")
flags.DEFINE_enum(
  "learner",
  "snail",
  sorted(READERS),
  "The network that reads.",
  allow_override=True,
)
flags.DEFINE_enum(
  "protocol",
  "presentations",
  ["presentations", "few_shot"],
  "What is learned and reported. presentations: predictions of every image of "
  "a sequence with --shots images of each class. few_shot: predictions of "
  "queries after the support.",
)
flags.DEFINE_integer(
  "width",
  0,
  "Width of the reader's layers: units, channels or numbers of a token. 0: its "
  "default.",
  lower_bound=0,
)
flags.DEFINE_enum(
  "encoder",
  "conv4",
  ["conv4", "none"],
  "What reads the images first. conv4: a network that is trained with the "
  "reader. none: the reader gets the pixels.",
)
flags.DEFINE_integer("filters", 64, "Channels of conv4.", lower_bound=1)
flags.DEFINE_integer(
  "validation_tasks", 200, "Tasks of a validation.", lower_bound=2
)
DEFAULTS = {
  "steps": 2000,
  "shots": 10,
  "query_shots": 1,
  "image_size": 20,
  "meta_batch": 16,
  "outer_lr": 5e-4,
  "outer_schedule": "cosine",
}
FEW_SHOT = {
  "protocol": "few_shot",
  "learner": "snail",
  "shots": 1,
  "image_size": 28,
  "meta_batch": 32,
  "steps": 40_000,
}
PRESETS = {
  # 100,000 tasks of batches of 16.
  "santoro": {
    "learner": "mann",
    "encoder": "none",
    "steps": 6250,
    "outer_schedule": "constant",
  },
  "5w1s": FEW_SHOT,
  "20w1s": FEW_SHOT | {"ways": 20},
}
UNUSED = ("inner_steps", "inner_lr", "memory", "train_ways")


def main() -> None:
  by_presentation = FLAGS.protocol == "presentations"
  most = max(FLAGS.shots, *np.ravel(FLAGS.train_shots).tolist())
  sizes: dict[str, Any] = {"length": FLAGS.ways * most + 1}
  if FLAGS.width:
    sizes[WIDTHS[FLAGS.learner]] = FLAGS.width
  reader = build_reader(FLAGS.learner, **sizes)
  reader(FLAGS.ways)  # Refuses a width that does not fit.
  # Groups of channels would not keep the features of images apart, see
  # docs/context.md. At test the statistics are constants, so no image sees
  # later ones.
  network: dict[str, Any] = {
    "name": "conv4",
    "filters": FLAGS.filters,
    "normalization": "running",
  }
  if FLAGS.encoder == "none":
    refuse("filters")
    network = {"name": "mlp", "hidden": (), "normalization": "none"}
  with waiting("loading data"):
    data = image_data.load(FLAGS.ways, FLAGS.ways)
  recipe = recipes.Recipe(
    FLAGS.learner,
    network,
    FLAGS.ways,
    "cross_entropy",
    options={**sizes, "of_support": by_presentation},
    kind="reader",
  )
  learner = recipes.build(recipe, {"accuracy": accuracy})

  def scorer(split: str, num_tasks: int) -> Callable[[Params], np.ndarray]:
    """Returns `params -> accuracies [tasks, presentations or 1]`."""
    family = getattr(data.splits, split)
    if by_presentation:
      encoder = recipes.build_model(network, None)
      whole = with_encoder(encoder, reader, FLAGS.ways)
      return presentations.scorer(whole, family, split, num_tasks, FLAGS.shots)
    scores = {"accuracy": accuracy}
    score = scoring.task_scorer(learner, family, scores, split, num_tasks)
    return lambda params: score(params)["accuracy"][:, None]

  names = {0: "accuracy"}
  if by_presentation:
    shown = (k for k in presentations.SHOWN if k <= FLAGS.shots)
    names = {k - 1: f"presentation_{k}" for k in shown}
  validation = scorer("validation", FLAGS.validation_tasks)

  def validate(params: Params) -> dict[str, float]:
    values = validation(params)
    return {name: float(values[:, i].mean()) for i, name in names.items()}

  trainer = training.trainer(learner, data.splits.train)
  workdir = folder.start(
    "context_classify", data.fingerprint, eval_data=data.eval_fingerprint
  )
  if report.show_finished(workdir):
    return
  trained = training.train(trainer, workdir, validate)
  test = scorer("test", FLAGS.eval_tasks)
  with waiting("evaluating on test tasks"):
    values = np.asarray(test(trained.state.meta_params))
  published: dict[str, Any] = {}
  if data.protocol["data"] == "omniglot" and "eval_data" not in data.protocol:
    tasks = FLAGS.protocol, FLAGS.ways, FLAGS.shots
    published = presentations.PUBLISHED.get(tasks, {})
  plots.learning_curve(
    workdir,
    {"accuracy": "training, queries"}
    | {f"validation/{name}": f"validation, {name}" for name in names.values()},
    "accuracy",
  )
  if by_presentation:
    presentations.draw(workdir, FLAGS.learner, values, published)
  report.finish(
    workdir,
    "context_classify",
    {
      **data.protocol,
      **flag_values("learner", "protocol", "width", "encoder"),
      "filters": FLAGS.filters if FLAGS.encoder == "conv4" else None,
      "normalization": network["normalization"],
      "transductive": False,
      "published_percent": published,
    },
    {name: estimate(values[:, i]) for i, name in names.items()},
    trained,
    recipe=recipe,
    inverted=data.inverted,
    channels=data.channels,
    inputs=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      jax.eval_shape(data.splits.test, jax.random.key(0)).support.inputs,
    ),
  )


if __name__ == "__main__":
  run(main, PRESETS, DEFAULTS, unused=UNUSED)
