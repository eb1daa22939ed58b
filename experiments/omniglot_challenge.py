"""The Omniglot challenge: one-shot classification within an alphabet.

  python -m experiments.omniglot_challenge --data_dir=DIR

trains a learner on tasks within the 30 background alphabets, or on minimal sets
of 5 of them (`--sets=background,small1,small2`), and reports its error in the
400 trials that Lake et al. (2015; 2019) have published for 20 characters at a
time. Nothing is chosen, so that the trials are looked at once. Tasks are of as
many characters as the smallest alphabet has; learners whose network has an
output for each character need 20, and do without the alphabets of fewer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy import stats

from metajax import saved
from metajax.evaluation import Estimate, estimate, solve
from metajax.learners import ANY_WAYS
from metajax.losses import accuracy
from metajax.models.normalization import NORMALIZATIONS, statistics
from metajax.runs import learner_options, report
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks.alphabets import alphabet_episodes
from metajax.tasks.omniglot import OmniglotImages, load_omniglot
from metajax.tasks.one_shot_runs import MINIMAL, WAYS, load_one_shot_runs
from metajax.training.logging import waiting
from metajax.types import Array, Episode, MetaLearner, Params

define_data_dir()
SETS = ("background", *MINIMAL)
flags.DEFINE_list(
  "sets",
  ["background"],
  f"Alphabets to learn to learn from: {', '.join(SETS)}.",
)
flags.register_validator(
  "sets",
  lambda names: names and set(names) <= set(SETS),
  f"must be of {', '.join(SETS)}",
)
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

# Errors in percent, by the alphabets that were learned from (30; 5 at a time).
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
    return saved.build(recipe, {"accuracy": accuracy})

  learner = build(WAYS)
  with waiting("loading data"):
    trials = load_one_shot_runs(FLAGS.data_dir)
    data = load_omniglot(FLAGS.data_dir)
  stages = Stages("omniglot_challenge")
  metrics: dict[str, Estimate] = {}
  intervals, trained_on = {}, {}
  for name in dict.fromkeys(FLAGS.sets):
    chosen = characters(data, name)
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
    for transductive in (False, True):
      wrong = np.asarray(errors(learner, params, trials, transductive)).ravel()
      key = f"{name}_error" + "_transductive" * transductive
      metrics[key] = estimate(100 * wrong)
      interval = stats.binomtest(int(wrong.sum()), wrong.size).proportion_ci()
      intervals[key] = [100 * interval.low, 100 * interval.high]
  report.finish(
    stages.workdir,
    "omniglot_challenge",
    {
      **learner_options.protocol(FLAGS.learner),
      "ways": WAYS,
      "shots": 1,
      "query_shots": FLAGS.query_shots,
      "rotations": 4,
      "trained_on": trained_on,
      "filters": FLAGS.filters,
      "normalization": FLAGS.normalization,
      "statistics": statistics(FLAGS.normalization),
      "trials": len(trials.query.targets) * WAYS,
      "binomial_intervals": intervals,
      "published": PUBLISHED,
    },
    metrics,
    stages.total(),
  )


def characters(data: OmniglotImages, name: str) -> np.ndarray:
  """Tells which characters are of a set, `[1623]`."""
  if name in MINIMAL:
    return data.is_background & np.isin(data.alphabets, MINIMAL[name])
  return data.is_background


@waiting("evaluating on test tasks")
def errors(
  learner: MetaLearner, params: Params, trials: Episode, transductive: bool
) -> Array:
  """Returns which trials go wrong, `[runs, ways]`, as 0 or 1."""

  @jax.jit
  def wrong(params: Params, trials: Episode) -> Array:
    def one(run: Episode) -> Array:
      logits = solve(
        learner,
        params,
        run.support,
        run.query.inputs,
        jax.random.key(FLAGS.seed),
        transductive=transductive,
      )
      return (logits.argmax(-1) != run.query.targets).astype(jnp.float32)

    return jax.lax.map(one, trials)

  return wrong(params, trials)


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=("eval_tasks", "eval_every", "eval_seed"))
