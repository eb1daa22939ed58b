"""How well a learner fits sinusoids, by support points and inner steps."""

import functools
from collections.abc import Callable
from pathlib import Path

from metajax.evaluation import Estimate
from metajax.learners import ENCODED
from metajax.losses import mean_squared_error
from metajax.runs import learner_options, plots, rng_keys, scoring, seeds
from metajax.runs.flags import FLAGS, define_integers
from metajax.tasks import sinusoid
from metajax.types import MetaLearner, Params

define_integers(
  "eval_shots",
  [5],
  "Number of support points at test.",
  lower_bound=1,
)
define_integers(
  "eval_inner_steps",
  [0, 1, 5, 10],
  "Number of inner steps at test.",
  lower_bound=0,
)
QUERY_SHOTS = 100

LearnerOf = Callable[[int], MetaLearner]


def possible_steps(learner: LearnerOf) -> list[int]:
  """Returns the numbers of inner steps that are tested.

  Raises:
    ValueError: if the learner cannot take those that the flag gives.
  """
  possible = FLAGS.eval_inner_steps
  if not FLAGS["eval_inner_steps"].present:
    possible = learner_options.possible_steps(FLAGS.learner, possible) or [0]
  for steps in possible:
    learner(steps)
  return possible


def scorer(
  learner: LearnerOf, shots: int, split: str, num_tasks: int
) -> Callable[[Params, int], Estimate]:
  """Returns `(params, inner steps) -> mean squared error`."""
  score = scoring.stepwise_scorer(
    FLAGS.learner,
    learner,
    sinusoid(shots, QUERY_SHOTS),
    {"mse": mean_squared_error},
    split,
    num_tasks,
    task_chunk=100,
  )

  def mean(params: Params, steps: int) -> Estimate:
    each = seeds.over_seeds(functools.partial(score, steps=steps))
    return each(params)["mse"]

  return mean


def test(
  learner: LearnerOf, params: Params, possible: list[int]
) -> dict[str, Estimate]:
  """Returns the test errors by name."""

  def curve(shots: int) -> dict[int, Estimate]:
    score = scorer(learner, shots, "test", FLAGS.eval_tasks)
    return {steps: score(params, steps) for steps in possible}

  tested = scoring.together(
    {shots: functools.partial(curve, shots) for shots in FLAGS.eval_shots}
  )
  # Learners without an inner loop have one score, not one for each step.
  stepwise = FLAGS.learner not in ENCODED
  return {
    f"mse_{shots}_shot" + f"_{steps}_steps" * stepwise: mse
    for shots, scores in tested.items()
    for steps, mse in scores.items()
  }


def draw(
  path: Path, learner: LearnerOf, params: Params, possible: list[int]
) -> None:
  """Draws the fits of some test curves after each number of steps."""
  stepwise = FLAGS.learner not in ENCODED
  plots.sinusoid_fits(
    path,
    {
      _label(steps) if stepwise else "after the support": learner(steps)
      for steps in possible
    },
    seeds.first(params),
    sinusoid(FLAGS.eval_shots[0], QUERY_SHOTS),
    rng_keys.evaluation_key("picture"),
  )


def _label(steps: int) -> str:
  return f"after {steps} step{'s'[: steps > 1]}" if steps else "before"
