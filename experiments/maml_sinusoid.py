"""Sinusoid regression by MAML (Finn et al. 2017, section 5.1 and appendix C).

  python -m experiments.maml_sinusoid

The script trains on the paper's protocol (70,000 meta-steps of 25 tasks, one
inner step). It reports the mean squared error of 5-shot learning after 1, 5 and
10 gradient steps on 600 new curves. The paper has 0.67, 0.38 and 0.35.

Two defaults differ from the paper: training uses as many support points as the
test, and the step size has a cosine schedule. `--preset=paper` has the paper's
settings. With them, one diverging curve often dominates the mean over 600
curves: after 5 steps 13 curves in 10,000 had an error above 12.5. With the
defaults it was 8 curves (20,000 validation curves, 3 seeds each).
"""

import functools

import jax
from absl import flags

from metajax import recipes
from metajax.evaluation import Estimate
from metajax.learners import CLASSIFIERS, ENCODED
from metajax.losses import mean_squared_error
from metajax.runs import (
  folder,
  inspection,
  learner_options,
  plots,
  report,
  rng_keys,
  scoring,
  seeds,
  training,
)
from metajax.runs.flags import FLAGS
from metajax.runs.script import run
from metajax.tasks import sinusoid
from metajax.types import Params

flags.DEFINE_integer(
  "shots", 5, "Number of support points in training.", lower_bound=1
)
flags.DEFINE_integer(
  "query_shots", 10, "Number of query points in training.", lower_bound=1
)
flags.DEFINE_multi_integer(
  "eval_shots",
  [5],
  "Number of support points at test.",
  lower_bound=1,
)
flags.DEFINE_multi_integer(
  "eval_inner_steps",
  [0, 1, 5, 10],
  "Number of inner steps at test.",
  lower_bound=0,
)
DEFAULTS = {
  "steps": 70_000,
  "outer_schedule": "cosine",
  "meta_batch": 25,
  "log_every": 1000,
  "eval_every": 5000,
  "checkpoint_every": 10_000,
}

EVAL_QUERY_SHOTS = 100
PRESETS = {"paper": {"shots": 10, "outer_schedule": "constant"}}


def main() -> None:
  name = FLAGS.learner
  if name in CLASSIFIERS:
    raise ValueError(
      f"--learner={name} tells classes apart, and has no numbers to say: "
      "choose another."
    )

  network = {"name": "mlp", "hidden": [40, 40]}

  def recipe(eval_steps: int):
    return learner_options.recipe(
      name, network, "mean_squared_error", 1, eval_steps
    )

  def learner(eval_steps: int):
    return recipes.build(recipe(eval_steps))

  def scorer(shots: int, split: str, num_tasks: int):
    score = scoring.stepwise_scorer(
      name,
      learner,
      sinusoid(shots, EVAL_QUERY_SHOTS),
      {"mse": mean_squared_error},
      split,
      num_tasks,
      task_chunk=100,
    )

    def mean(params: Params, steps: int) -> Estimate:
      each = seeds.over_seeds(functools.partial(score, steps=steps))
      return each(params)["mse"]

    return mean

  possible = FLAGS.eval_inner_steps
  if not FLAGS["eval_inner_steps"].present:
    possible = learner_options.possible_steps(name, possible) or [0]
  for steps in possible:
    learner(steps)  # Raises an error if the learner cannot take these steps.
  validation = scorer(FLAGS.eval_shots[0], "validation", 600)
  train_tasks = sinusoid(FLAGS.shots, FLAGS.query_shots)
  trainer = training.trainer(
    learner(FLAGS.inner_steps),
    train_tasks,
    rule=FLAGS.outer_optimizer,
    skip_non_finite=FLAGS.skip_non_finite,
    rng=seeds.keys(rng_keys.task_key),
    recipe=recipe(FLAGS.inner_steps),
  )
  workdir = folder.start("maml_sinusoid", goes_on=True)
  if FLAGS.replay_step is not None:
    inspection.replay(workdir, trainer, learner(FLAGS.inner_steps), train_tasks)
    return
  if report.show_finished(workdir):
    return
  trained = training.train(
    trainer,
    workdir,
    lambda params: {"mse": validation(params, FLAGS.inner_steps).mean},
    rng=seeds.keys(rng_keys.init_key),
  )
  params = trained.state.meta_params

  def test(shots: int) -> dict[int, Estimate]:
    score = scorer(shots, "test", FLAGS.eval_tasks)
    return {steps: score(params, steps) for steps in possible}

  tested = scoring.together(
    {shots: functools.partial(test, shots) for shots in FLAGS.eval_shots}
  )
  # Learners without an inner loop have one score, not one for each step.
  stepwise = name not in ENCODED
  metrics = {
    f"mse_{shots}_shot" + f"_{steps}_steps" * stepwise: mse
    for shots, curve in tested.items()
    for steps, mse in curve.items()
  }
  plots.learning_curve(
    workdir,
    {"loss": "training", "validation/mse": "validation"},
    "mean squared error",
    log=True,
  )
  plots.sinusoid_fits(
    workdir / "adaptation.png",
    {
      _label(steps) if stepwise else "after the support": learner(steps)
      for steps in possible
    },
    seeds.first(params),
    sinusoid(FLAGS.eval_shots[0], EVAL_QUERY_SHOTS),
    jax.random.key(FLAGS.eval_seed),
  )
  report.finish(
    workdir,
    "maml_sinusoid",
    {
      **learner_options.protocol(name),
      "num_seeds": FLAGS.num_seeds,
      "shots": FLAGS.shots,
      "query_shots": FLAGS.query_shots,
      "eval_query_shots": EVAL_QUERY_SHOTS,
      "inner_loss": "mean squared error",
      "normalization": "none",
      "transductive": False,
    },
    metrics,
    trained,
    recipe=recipe(FLAGS.inner_steps),
    inputs=jax.ShapeDtypeStruct((1,), "float32"),
  )


def _label(steps: int) -> str:
  return f"after {steps} step{'s'[: steps > 1]}" if steps else "before"


if __name__ == "__main__":
  run(main, PRESETS, DEFAULTS)
