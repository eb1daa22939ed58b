"""Averages of 500 regressors against MAML (Finn et al. 2017, appendix C).

  python -m experiments.aggregate_sinusoid

trains 500 networks, each on a sine wave of its own, three times over (without a
penalty, with weight decay, and pulled to the mean of those trained before),
combines them in weight space and in prediction space, learns how to combine
them, and fine-tunes what comes of it on 5 points of a new curve. Beside them
stand the paper's rows that average nothing: one network trained on all curves,
and MAML. The step size of the fine-tuning is chosen for each row on validation
curves.
"""

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.shared import regressors
from metajax import aggregation
from metajax.evaluation import Estimate, estimate
from metajax.learners import learned_average, learned_ensemble, maml
from metajax.losses import mean_squared_error
from metajax.runs import plots, report, rng_keys, scoring
from metajax.runs.flags import FLAGS
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks import sinusoid
from metajax.training import cohort_trainer, meta_trainer
from metajax.training.loop import Schedule
from metajax.types import Batch, MetaLearner, Params, PRNGKey

flags.DEFINE_integer(
  "regressors", 500, "Networks to combine, a curve each.", lower_bound=2
)
flags.DEFINE_integer(
  "cohort",
  50,
  "Regressors trained at once; must divide --regressors. The pull to the mean "
  "is to that of the cohorts before.",
  lower_bound=1,
)
flags.DEFINE_integer(
  "regressor_steps", 5000, "Steps of Adam of a regressor.", lower_bound=1
)
flags.DEFINE_bool(
  "shared_init",
  True,
  "All regressors start from the same random network, else each from its own.",
)
flags.DEFINE_float(
  "l2", 1e-3, "Weight of a regressor's squared norm in row L2.", lower_bound=0.0
)
flags.DEFINE_float(
  "to_mean",
  2e-3,
  "Weight of a regressor's squared distance to the mean of those before.",
  lower_bound=0.0,
)
flags.DEFINE_integer(
  "weight_steps", 500, "Meta-steps of the learned weights.", lower_bound=1
)
DEFAULTS = {
  "steps": 70_000,
  "outer_schedule": "cosine",
  "meta_batch": 25,
  "log_every": 5000,
  "eval_every": 10_000,
  "checkpoint_every": 10_000,
}

SHOTS = 5
COLUMNS = (1, 5, 10)  # Steps of fine-tuning.
RATES = (0.001, 0.003, 0.01, 0.03)  # Of fine-tuning, by SGD.

Build = Callable[[int, float], MetaLearner]  # (steps, rate) -> learner


def fine_tuning(steps: int, rate: float) -> MetaLearner:
  """MAML; with no steps in training it is joint training on all curves."""
  return maml(regressors.MODEL, mean_squared_error, optax.sgd(rate), steps)


def ensemble(steps: int, rate: float, *, members: Params) -> MetaLearner:
  return learned_ensemble(
    fine_tuning(steps, rate),
    members,
    aggregation.weighted_average,
    mean_squared_error,
  )


def first(stack: Params, size: int) -> Params:
  return jax.tree.map(lambda x: x[:size], stack)


class Regression(Stages):
  """The trainings of this experiment."""

  def regressors(self, name: str, rng: PRNGKey, pull: str = "") -> Params:
    shared = jax.random.fold_in(rng, FLAGS.regressors)
    weight = {"": 0.0, "l2": FLAGS.l2, "to_mean": FLAGS.to_mean}[pull]
    trainer = cohort_trainer(
      lambda key: regressors.init(shared if FLAGS.shared_init else key),
      functools.partial(
        regressors.train,
        num_steps=FLAGS.regressor_steps,
        penalty=weight,
        to_mean=pull == "to_mean",
      ),
      FLAGS.regressors,
      FLAGS.cohort,
      rng=rng,
    )
    schedule = Schedule(FLAGS.regressors // FLAGS.cohort, 1, 1, 1)
    trained = self.train(name, trainer, schedule, FLAGS.cohort)
    return trained.state.meta_params

  def weights(self, name: str, learner: MetaLearner) -> Params:
    steps = FLAGS.weight_steps
    trainer = meta_trainer(
      learner,
      optax.adam(optax.cosine_decay_schedule(0.05, steps)),
      sinusoid(SHOTS, 10),
      meta_batch=FLAGS.meta_batch,
      rng=rng_keys.task_key(),
    )
    tenth = max(1, steps // 10)
    schedule = Schedule(steps, tenth, tenth, tenth)
    trained = self.train(name, trainer, schedule, FLAGS.meta_batch)
    return trained.state.meta_params


@functools.cache
def scorer(build: Build, steps: int, split: str):
  """Returns `((params, rate)) -> estimate`, compiled once for all rates."""

  def adapt(tuned: Params, support: Batch, rng: PRNGKey) -> Params:
    params, rate = tuned
    return build(steps, rate).adapt(params, support, rng)

  score = scoring.scorer(
    build(steps, 0.0)._replace(adapt=adapt),
    sinusoid(SHOTS, 100),
    {"mse": mean_squared_error},
    split,
    {"validation": 200, "test": FLAGS.eval_tasks}[split],
  )
  return lambda tuned: score(tuned)["mse"]


def fine_tuned(build: Build, params: Params) -> tuple[float, list[Estimate]]:
  """Returns the step size that validation chose, and the test errors."""

  def validation(rate: float) -> float:
    scores = [scorer(build, k, "validation")((params, rate)) for k in COLUMNS]
    error = sum(score.mean for score in scores)
    return error if math.isfinite(error) else math.inf

  rate = min(RATES, key=validation)
  return rate, [scorer(build, k, "test")((params, rate)) for k in COLUMNS]


def main() -> None:
  runs = Regression("aggregate_sinusoid")
  # 0 to 3 are the keys of trainings and evaluations.
  rng = jax.random.fold_in(jax.random.key(FLAGS.seed), 5)
  stack = runs.regressors("regressors", rng)
  decayed = runs.regressors("regressors_l2", rng, "l2")
  pulled = runs.regressors("regressors_to_mean", rng, "to_mean")
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    rng, jnp.arange(FLAGS.regressors)
  )
  own_error = jax.jit(jax.vmap(regressors.own_error))
  errors = {
    "regressors": own_error(keys, stack),
    "regressors_l2": own_error(keys, decayed),
    "regressors_to_mean": own_error(keys, pulled),
  }
  print("aligning the regressors", file=sys.stderr)
  aligned = aggregation.align_stack(stack, regressors.unit_axes(), rounds=5)
  fishers = jax.jit(jax.vmap(regressors.fisher))(keys, stack)
  starts = {
    "average": aggregation.weighted_average(stack),
    "average_l2": aggregation.weighted_average(decayed),
    "average_to_mean": aggregation.weighted_average(pulled),
    "average_aligned": aggregation.weighted_average(aligned),
    "average_fisher": aggregation.fisher_average(stack, fishers),
    "pretrained": runs.meta_train(
      "pretrained", fine_tuning(0, 0.0), sinusoid(SHOTS, 10)
    ),
    "maml": runs.meta_train(
      "maml", fine_tuning(1, FLAGS.inner_lr), sinusoid(SHOTS, 10)
    ),
  }

  def weighted(steps: int, rate: float) -> MetaLearner:
    learner = fine_tuning(steps, rate)
    return learned_average(learner, pulled, groups=lambda path: path)

  together = functools.partial(ensemble, members=stack)
  equal = together(0, 0.0).init(rng, jnp.zeros((1, 1)))
  weights = runs.weights("learned_average", weighted(1, FLAGS.inner_lr))
  posterior = runs.weights("learned_ensemble", together(0, 0.0))
  rows = {
    **{name: (fine_tuning, params) for name, params in starts.items()},
    "learned_average": (weighted, weights),
    "ensemble": (together, equal),
    "learned_ensemble": (together, posterior),
  }
  metrics, rates = {}, {}
  for name, (build, params) in rows.items():
    print(f"fine-tuning {name}", file=sys.stderr)
    rates[name], scores = fine_tuned(build, params)
    for steps, score in zip(COLUMNS, scores, strict=True):
      metrics[f"{name}_{steps}_steps"] = score
  metrics["learned_ensemble_0_steps"] = scorer(together, 0, "test")(
    (posterior, 0.0)
  )
  draw_sizes(runs.workdir, stack, posterior)
  draw_barrier(runs.workdir, jax.random.fold_in(rng, FLAGS.regressors + 1))
  report.finish(
    runs.workdir,
    "aggregate_sinusoid",
    {
      "shots": SHOTS,
      "regressors": FLAGS.regressors,
      "regressor_steps": FLAGS.regressor_steps,
      "shared_init": FLAGS.shared_init,
      "regressor_error": {
        name: {"max": float(e.max()), "mean": float(e.mean())}
        for name, e in errors.items()
      },
      "l2": FLAGS.l2,
      "to_mean": FLAGS.to_mean,
      "fine_tuning_rate": rates,
      "inner_lr": FLAGS.inner_lr,
      "beta": float(posterior["beta"]),
    },
    metrics,
    runs.total(),
  )


def draw_sizes(workdir: Path, stack: Params, posterior: Params) -> None:
  """Error without fine-tuning against the number of regressors combined."""
  sizes = [n for n in (2, 5, 10, 20, 50, 100, 200) if n < FLAGS.regressors]
  curves: dict[str, dict[int, Estimate]] = {"equal": {}, "learned": {}}
  for size in [*sizes, FLAGS.regressors]:
    build = functools.partial(ensemble, members=first(stack, size))
    score = scorer(build, 0, "test")
    equal = {"logits": jnp.zeros(size), "beta": jnp.zeros(())}
    learned = {**posterior, "logits": posterior["logits"][:size]}
    curves["equal"][size] = score((equal, 0.0))
    curves["learned"][size] = score((learned, 0.0))
  plots.curves(
    workdir / "ensemble_size.png",
    curves,
    "regressors in the ensemble",
    "mean squared error",
    log="xy",
  )


def draw_barrier(workdir: Path, rng: PRNGKey) -> None:
  lines = regressors.lines_between_pairs(rng, 10, FLAGS.regressor_steps)
  plots.curves(
    workdir / "barrier.png",
    {
      name: dict(
        zip(
          np.linspace(0, 1, errors.shape[1]),
          map(estimate, errors.T),
          strict=True,
        )
      )
      for name, errors in lines.items()
    },
    "place on the line between two regressors of one curve",
    "mean squared error, mean of 10 pairs",
  )


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=("learner", "inner_steps", "memory"))
