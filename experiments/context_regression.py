"""Regression in context, measured against exact posteriors.

  python -m experiments.context_regression --learner=tnp_d

A learner reads the support of a random function and predicts distributions of
its values. The default is the protocol of transformer neural processes (Nguyen
and Grover 2022, section 5.1), with fewer steps: functions of Gaussian processes
with hyper-parameters that differ between tasks. `--preset=tnp` has the paper's
100,000 steps. `--tasks` are other functions, such as `linear`: Bayesian linear
regression. `--preset=pfn` trains a prior-fitted network on one Gaussian
process.

The script reports the log-likelihood in nats for each target, the coverage of
90% intervals and the calibration of others, and the squared error. Beside them
it reports the log-likelihood of the exact posterior, and that of a learner
which is told the hyper-parameters ("oracle"). No learner can be better than the
exact posterior. For `tnp_a` and `tnp_nd` the log-likelihood is that of the
joint density of a task's targets, and so is the oracle's.
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from experiments.shared import attention_pictures, context_learners
from experiments.shared.context_sizes import by_size
from experiments.shared.predictive_bands import bands
from experiments.shared.predictive_densities import densities
from experiments.shared.random_functions import (
  BOUNDS,
  FAMILIES,
  POINTS,
  WITHOUT_EXACT,
  best,
  with_supports,
)
from metajax import context, recipes
from metajax.calibration import calibration_error, coverage
from metajax.context.registry import JOINT
from metajax.evaluation import estimate
from metajax.predictive import log_likelihood, mean_error
from metajax.runs import folder, plots, report, rng_keys, scoring, training
from metajax.runs.flags import FLAGS, define_integers, flag_values
from metajax.runs.script import run
from metajax.tasks.known import exact_learner
from metajax.types import LossFn

flags.DEFINE_enum("tasks", "rbf", list(FAMILIES), "The functions.")
flags.DEFINE_integer(
  "validation_tasks", 200, "Tasks of a validation.", lower_bound=2
)
define_integers(
  "eval_shots",
  [3, 10, 30],
  "Support points of the curves and the pictures.",
  lower_bound=1,
)
DEFAULTS = {
  "steps": 5000,
  "meta_batch": 16,
  "outer_lr": 5e-4,
  "outer_schedule": "cosine",
  "log_every": 100,
}
PRESETS = {
  "tnp": {"steps": 100_000, "log_every": 1000, "eval_every": 5000},
  "pfn": {
    "learner": "prior_fitted",
    "tasks": "fixed_rbf",
    "steps": 100_000,
    "log_every": 1000,
    "eval_every": 5000,
  },
}
UNUSED = ("inner_steps", "inner_lr", "memory")
PLACES = (-1.5, -0.5, 0.5, 1.5)  # Of the densities.
SCORES: dict[str, LossFn] = {
  "log_likelihood": context.log_density,
  "coverage_90": context.of_marginals(coverage(0.9)),
  "calibration_error": context.of_marginals(calibration_error),
  "squared_error": context.of_marginals(mean_error),
}


def main() -> None:
  name, family = FLAGS.learner, FAMILIES[FLAGS.tasks]
  if name == "convcnp" and FLAGS.tasks == "linear":
    raise ValueError(
      "--learner=convcnp: reads inputs from -2.5 to 2.5 only, and those of "
      "--tasks=linear are of N(0, 1): choose another learner."
    )
  joint = name in JOINT
  tasks = family(**POINTS)
  recipe = context_learners.recipe(tasks)
  learner = recipes.build(recipe, {"log_likelihood": context.log_density})
  validation = scoring.scorer(
    learner,
    tasks,
    {"log_likelihood": context.log_density},
    "validation",
    FLAGS.validation_tasks,
    task_chunk=50,
  )
  trainer = training.trainer(learner, tasks)
  workdir = folder.start("context_regression")
  if report.show_finished(workdir):
    return
  trained = training.train(
    trainer,
    workdir,
    lambda params: {k: v.mean for k, v in validation(params).items()},
  )
  params = trained.state.meta_params

  test = functools.partial(
    scoring.task_scorer, split="test", num_tasks=FLAGS.eval_tasks
  )
  scores = dict(SCORES)
  if joint:
    scores["marginal_log_likelihood"] = context.of_marginals(log_likelihood)
  values = test(learner, tasks, scores)(params)
  # Joint predictions are compared with the oracle alone. (The joint density of
  # the exact posterior is `tasks.known.joint_by_evidence`.)
  exact = FLAGS.tasks not in WITHOUT_EXACT
  reference = "exact" if exact and not joint else "oracle"
  values["oracle_log_likelihood"] = best(tasks, test, joint, "oracle")
  if exact:
    key = "exact_" + "marginal_" * joint + "log_likelihood"
    values[key] = best(tasks, test, False, "exact")
  metrics = {k: estimate(v) for k, v in values.items()}
  metrics |= scoring.differences(
    values, [(f"{reference}_log_likelihood", "log_likelihood")]
  )

  metrics |= by_size(workdir, learner, params, family, test, reference, joint)
  plots.learning_curve(
    workdir,
    {
      "log_likelihood": "training",
      "validation/log_likelihood": "validation",
    },
    "log-likelihood in nats for each target",
  )
  rows = {name: (learner, params)}
  if exact:
    rows["exact posterior"] = exact_learner(tasks), ()
  task_key, key = jax.random.split(rng_keys.evaluation_key("picture"))
  shown = with_supports(family, FLAGS.eval_shots, task_key)
  bands(workdir / "predictions.png", rows, shown, BOUNDS, key)
  if exact and not joint:
    densities(workdir / "densities.png", rows, shown, PLACES, key)
  if name in attention_pictures.LEARNERS:
    largest = shown[max(shown, key=lambda k: len(shown[k].support.inputs))]
    path = workdir / "attention.png"
    attention_pictures.attention(path, learner, params, largest, BOUNDS, key)
  report.finish(
    workdir,
    "context_regression",
    {
      **context_learners.protocol(),
      **flag_values("tasks"),
      **POINTS,
      "log_likelihood": "of the joint density" if joint else "of each target",
    },
    metrics,
    trained,
    recipe=recipe,
    inputs=jax.ShapeDtypeStruct((1,), jnp.float32),
  )


if __name__ == "__main__":
  # Each task is drawn by a factorisation.
  run(main, PRESETS, DEFAULTS, unused=UNUSED, spare_threads=True)
