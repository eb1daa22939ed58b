"""The Omniglot challenge: one-shot classification within an alphabet.

  python -m experiments.omniglot_challenge --data_dir=DIR

The script trains a learner on tasks within the 30 background alphabets, or
within minimal sets of 5 alphabets (`--sets=background,small1,small2`). It
reports the error in the 400 published trials of Lake et al. (2015; 2019), each
with 20 characters. The script makes no choices by these trials: it uses them
only once. Training tasks have as many characters as the smallest alphabet, at
most 20. Learners whose network has an output for each character need 20. They
leave out smaller alphabets.

Prototypical networks, the default, take 3.5 minutes on a core and have an error
of 17.0%. After `--steps=8000` they have 8.3%. Lake et al. have 13.5% for a
convolutional network.
"""

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared import challenge
from metajax import recipes
from metajax.evaluation import Estimate, estimate
from metajax.learners import ANY_WAYS
from metajax.losses import accuracy
from metajax.models.normalization import NORMALIZATIONS, statistics
from metajax.runs import learner_options, report
from metajax.runs.flags import FLAGS, define_data_dir, flag_values
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks.alphabets import alphabet_episodes
from metajax.tasks.omniglot import load_omniglot
from metajax.tasks.one_shot_runs import WAYS, load_one_shot_runs
from metajax.training.logging import waiting
from metajax.types import MetaLearner

define_data_dir()
flags.DEFINE_integer(
  "query_shots", 5, "Query images per class in training.", lower_bound=1
)
flags.DEFINE_integer("filters", 64, "Channels of conv4.", lower_bound=1)
flags.DEFINE_enum(
  "normalization",
  "batch",
  sorted(NORMALIZATIONS),
  "Normalisation in every layer; batch: by the statistics of the images given, "
  "running: in evaluation by running averages of those of training.",
)
DEFAULTS = {
  "learner": "prototypical",
  "steps": 2000,
  "meta_batch": 4,
  "outer_schedule": "cosine",
  "inner_steps": 1,
  "inner_lr": 0.4,
}

# Errors in percent, by the training alphabets (30, or 5 at a time).
PUBLISHED = {
  "modified Hausdorff distance, in the authors' code": {"none": 38.8},
  "deep convolutional network": {"background": 13.5, "minimal": 23},
  "Bayesian program learning": {"minimal": 4},
}


def main() -> None:
  def build(ways: int) -> MetaLearner:
    recipe = learner_options.recipe(
      FLAGS.learner,
      {
        "name": "conv4",
        "filters": FLAGS.filters,
        "normalization": FLAGS.normalization,
        "num_context": learner_options.num_context(FLAGS.learner),
      },
      "cross_entropy",
      ways,
      FLAGS.inner_steps,
    )
    return recipes.build(recipe, {"accuracy": accuracy})

  learner = build(WAYS)
  with waiting("loading data"):
    trials = load_one_shot_runs(FLAGS.data_dir)
    data = load_omniglot(FLAGS.data_dir)
  score = {x: challenge.scorer(learner, trials, x) for x in (False, True)}
  stages = Stages("omniglot_challenge")
  metrics: dict[str, Estimate] = {}
  intervals, trained_on = {}, {}
  for name in dict.fromkeys(FLAGS.sets):
    chosen = challenge.characters(data, name)
    sizes = np.unique(data.alphabets[chosen], return_counts=True)[1]
    ways = WAYS
    if FLAGS.learner in ANY_WAYS:
      ways = min(WAYS, int(sizes.min()))
    trained_on[name] = {"ways": ways, "alphabets": int((sizes >= ways).sum())}
    tasks = alphabet_episodes(
      jnp.asarray(data.images[chosen]),
      data.alphabets[chosen],
      ways,
      1,
      FLAGS.query_shots,
      num_rotations=4,
    )
    params = stages.meta_train(
      name, build(ways), tasks, rule=FLAGS.outer_optimizer
    )
    for transductive, errors in score.items():
      wrong = np.ravel(errors(params))
      key = f"{name}_error" + "_transductive" * transductive
      metrics[key] = estimate(100 * wrong)
      intervals[key] = challenge.binomial_interval(wrong)
  report.finish(
    stages.workdir,
    "omniglot_challenge",
    {
      **learner_options.protocol(FLAGS.learner),
      "ways": WAYS,
      "shots": 1,
      "rotations": 4,
      "trained_on": trained_on,
      **flag_values("query_shots", "filters", "normalization"),
      "statistics": statistics(FLAGS.normalization),
      "trials": len(trials.query.targets) * WAYS,
      "binomial_intervals": intervals,
      "published": PUBLISHED,
    },
    metrics,
    stages.total(),
  )


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=("eval_tasks", "eval_every", "eval_seed"))
