"""Completion of images by learners in context, from a few of their pixels.

  python -m experiments.context_images --learner=tnp_d --data=omniglot

A task is an image. The learner reads some pixels, each with its place, and
predicts distributions of others (Garnelo et al. 2018, section 4.2). The numbers
of pixels are those of Nguyen and Grover (2022) for images of 28 x 28, but at
most half of an image. The default images are scikit-learn's digits, which need
no download. `--data=omniglot` and `--data=cifar100` test on images of other
classes than those of the training.

The script reports the log-likelihood in nats for each number, the coverage of
90% intervals, the calibration error and the squared error. Beside them is the
squared error of the mean of the 3 nearest pixels. `completions.png` shows given
pixels, mean, deviation and truth.
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from experiments.shared import context_learners, whole_images
from experiments.shared.completions import completions
from metajax import context, recipes
from metajax.calibration import calibration_error, coverage
from metajax.context.regressors import nearest_neighbours
from metajax.evaluation import estimate
from metajax.losses import mean_squared_error
from metajax.predictive import mean_error
from metajax.runs import folder, plots, report, rng_keys, scoring, training
from metajax.runs.flags import (
  FLAGS,
  define_data_dir,
  define_integers,
  flag_values,
)
from metajax.runs.script import run
from metajax.tasks.image_completion import image_completion
from metajax.training.logging import waiting
from metajax.types import LossFn, MetaLearner

define_data_dir(", or of CIFAR-100 with --data=cifar100")
flags.DEFINE_integer(
  "validation_tasks", 200, "Tasks of a validation.", lower_bound=2
)
define_integers(
  "eval_shots",
  [4, 16, 32],
  "Given pixels of the curves and the picture.",
  lower_bound=1,
)
DEFAULTS = {
  "steps": 5000,
  "meta_batch": 16,
  "outer_lr": 5e-4,
  "outer_schedule": "cosine",
  "log_every": 100,
}
UNUSED = ("inner_steps", "inner_lr", "memory")
MOST = 196  # Pixels to read, and pixels to predict.
SHOWN = 2  # Images of the picture.
SCORES: dict[str, LossFn] = {
  "log_likelihood": context.log_density,
  "coverage_90": context.of_marginals(coverage(0.9)),
  "calibration_error": context.of_marginals(calibration_error),
  "squared_error": context.of_marginals(mean_error),
}


def main() -> None:
  if FLAGS.learner == "convcnp":
    raise ValueError(
      "--learner=convcnp: reads inputs of one number, and pixels have two: "
      "choose another learner."
    )
  with waiting("loading data"):
    images = whole_images.load()
  height, width = images.train.shape[1:3]
  most = min(MOST, height * width // 2)
  for shots in FLAGS.eval_shots:
    if shots > most:
      raise ValueError(
        f"--eval_shots={shots}: must be at most {most}, half of the "
        f"{height * width} pixels of an image."
      )
  points = {"shots": (3, most), "query_shots": (3, most)}
  points["max_points"] = most + 3
  train, validation, test = (image_completion(x, **points) for x in images)
  recipe = context_learners.recipe(train)
  learner = recipes.build(recipe, {"log_likelihood": context.log_density})
  validate = scoring.scorer(
    learner,
    validation,
    {"log_likelihood": context.log_density},
    "validation",
    FLAGS.validation_tasks,
    task_chunk=50,
  )
  trainer = training.trainer(learner, train)
  workdir = folder.start("context_images")
  if report.show_finished(workdir):
    return
  trained = training.train(
    trainer,
    workdir,
    lambda params: {k: v.mean for k, v in validate(params).items()},
  )
  params = trained.state.meta_params

  score = functools.partial(
    scoring.task_scorer, split="test", num_tasks=FLAGS.eval_tasks
  )
  metrics = {
    k: estimate(v) for k, v in score(learner, test, SCORES)(params).items()
  }
  nearest = score(_nearest(), test, {"error": mean_squared_error})(())
  metrics["nearest_squared_error"] = estimate(nearest["error"])
  for shots in FLAGS.eval_shots:
    some = image_completion(images.test, shots, most, max_points=None)
    names = ("log_likelihood", "squared_error")
    found = score(learner, some, {k: SCORES[k] for k in names})(params)
    metrics |= {f"{k}_{shots}_shot": estimate(v) for k, v in found.items()}
  plots.learning_curve(
    workdir,
    {
      "log_likelihood": "training",
      "validation/log_likelihood": "validation",
    },
    "log-likelihood in nats for each number",
  )
  key = rng_keys.evaluation_key("picture")
  chosen = images.test[:: max(len(images.test) // SHOWN, 1)][:SHOWN]
  path = workdir / "completions.png"
  completions(path, learner, params, chosen, FLAGS.eval_shots, key)
  report.finish(
    workdir,
    "context_images",
    {
      **context_learners.protocol(),
      **flag_values("data"),
      **points,
      "image_size": height,
    },
    metrics,
    trained,
    recipe=recipe,
    inputs=jax.ShapeDtypeStruct((2,), jnp.float32),
  )


def _nearest() -> MetaLearner:
  """Returns the mean of the 3 nearest pixels as a learner."""
  predict = nearest_neighbours(3)
  return MetaLearner(
    init=lambda rng, inputs: (),
    adapt=lambda params, support, rng: support,
    predict=lambda support, inputs, mask=None: predict(support, inputs),
    meta_grad=lambda params, episodes, rng: (params, {}),
  )


if __name__ == "__main__":
  # Some of what it compares factorises matrices.
  run(main, {}, DEFAULTS, unused=UNUSED, spare_threads=True)
