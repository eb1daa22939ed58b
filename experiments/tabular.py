"""Classification of small tables in context (TabPFN).

  python -m experiments.tabular

A transformer that attends over features and over rows in turn learns from
random tables of a prior (`metajax.tabular.tabular_prior`), and so approximates
the posterior predictive distribution of that prior. It then classifies real
tables in one pass, without training: the tables of scikit-learn, on random
splits, beside logistic regression, random forests and gradient boosting with
their default settings.

The default takes some minutes, and learns little. `--preset=core` is 64,000
tables, for two hours of one CPU core. `--preset=nano` has the sizes of
nanoTabPFN: 80,000 tables. The folder of a run is what
`metajax.sklearn.InContextClassifier` takes as `weights`.
"""

import jax
import jax.numpy as jnp
from absl import flags

from experiments.shared import real_tables
from metajax import saved
from metajax.losses import accuracy, cross_entropy
from metajax.recipes import Recipe, build
from metajax.runs import folder, plots, report, scoring, training
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.sklearn import InContextClassifier
from metajax.tabular import tabular_prior
from metajax.training.processes import agree

flags.DEFINE_integer("width", 64, "Width of the tokens.", lower_bound=1)
flags.DEFINE_integer("hidden", 128, "Units of the dense layers.", lower_bound=1)
flags.DEFINE_integer("layers", 3, "Layers of the network.", lower_bound=1)
flags.DEFINE_integer("heads", 4, "Heads of each attention.", lower_bound=1)
flags.DEFINE_integer(
  "features", 8, "The most features of a table in training.", lower_bound=1
)
flags.DEFINE_integer(
  "rows", 80, "The most support rows of a table in training.", lower_bound=10
)
flags.DEFINE_integer(
  "query_rows", 24, "Query rows of a table in training.", lower_bound=1
)
flags.DEFINE_integer(
  "validation_tasks", 200, "Tasks of a validation.", lower_bound=2
)
flags.DEFINE_integer(
  "splits", 20, "Random splits of each real table.", lower_bound=2
)
flags.DEFINE_integer(
  "train_rows", 300, "The most training rows of a real table.", lower_bound=50
)
flags.DEFINE_integer(
  "readings", 4, "Readings that are averaged on real tables.", lower_bound=1
)
DEFAULTS = {
  "steps": 300,
  "meta_batch": 16,
  "outer_schedule": "cosine",
  "eval_every": 500,
  "checkpoint_every": 500,
  "log_every": 50,
}
PRESETS = {
  # One CPU core: 64,000 tables.
  "core": {
    "width": 96,
    "hidden": 192,
    "features": 16,
    "rows": 100,
    "query_rows": 30,
    "steps": 8000,
    "meta_batch": 8,
    "task_chunk": 1,
    "log_every": 100,
  },
  "nano": {
    "width": 96,
    "hidden": 192,
    "features": 10,
    "rows": 120,
    "query_rows": 30,
    "meta_batch": 32,
    "steps": 2500,
  },
}
UNUSED = ("learner", "inner_steps", "inner_lr", "memory")
SCORES = {"accuracy": accuracy, "log_loss": cross_entropy}
CLASSES = 10


def main() -> None:
  recipe = Recipe(
    "tabular_classifier",
    None,
    num_outputs=CLASSES,
    loss="cross_entropy",
    kind="table",
    options={
      **flag_values("width", "hidden", "heads"),
      "num_layers": FLAGS.layers,
    },
  )
  learner = build(recipe, {"accuracy": accuracy})
  tasks = tabular_prior(
    FLAGS.features,
    shots=(10, FLAGS.rows),
    query_shots=FLAGS.query_rows,
    max_classes=CLASSES,
  )
  validation = scoring.scorer(
    learner, tasks, SCORES, "validation", FLAGS.validation_tasks
  )
  trainer = training.trainer(learner, tasks)
  workdir = folder.start("tabular")
  if report.show_finished(workdir):
    return
  trained = training.train(
    trainer,
    workdir,
    lambda params: {k: v.mean for k, v in validation(params).items()},
  )
  params = trained.state.meta_params
  test = scoring.scorer(learner, tasks, SCORES, "test", FLAGS.eval_tasks)
  metrics = {f"prior_{k}": v for k, v in test(params).items()}
  inputs = jax.ShapeDtypeStruct((FLAGS.features,), jnp.float32)
  saved.save(workdir, recipe, params, inputs)
  agree(0, 0)  # The other processes wait until the files are there.
  metrics |= real_tables.estimates(
    real_tables.compare(
      lambda: InContextClassifier(workdir, n_estimators=FLAGS.readings),
      FLAGS.splits,
      FLAGS.train_rows,
    )
  )
  real_tables.draw(workdir / "real_tables.png", metrics)
  plots.learning_curve(
    workdir,
    {"loss": "training", "validation/log_loss": "validation"},
    "log-loss on tables of the prior",
  )
  report.finish(
    workdir,
    "tabular",
    flag_values(
      "width",
      "hidden",
      "layers",
      "heads",
      "features",
      "rows",
      "query_rows",
      "splits",
      "train_rows",
      "readings",
    ),
    metrics,
    trained,
    recipe=recipe,
    inputs=inputs,
  )


if __name__ == "__main__":
  run(main, PRESETS, DEFAULTS, unused=UNUSED)
