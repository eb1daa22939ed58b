"""The tests of `few_shot` after its training, and their pictures."""

import functools
from pathlib import Path

from experiments.shared.image_data import ImageData
from metajax import recipes
from metajax.evaluation import Estimate
from metajax.learners import ANY_WAYS
from metajax.losses import accuracy
from metajax.runs import (
  breadth,
  learner_options,
  plots,
  rng_keys,
  scoring,
  seeds,
)
from metajax.runs.flags import FLAGS
from metajax.types import MetaLearner, Params, TaskFamily

METRICS = {"accuracy": accuracy}


def build(
  recipe: recipes.Recipe, steps: int, ways: int | None = None
) -> MetaLearner:
  """Builds a learner that takes so many inner steps at test."""
  own = recipe._replace(
    num_eval_steps=steps, num_outputs=ways or recipe.num_outputs
  )
  return recipes.build(own, METRICS)


def test(
  workdir: Path, recipe: recipes.Recipe, data: ImageData, params: Params
) -> dict[str, Estimate]:
  """Tests a trained learner as --eval_tasks and --pictures say.

  The network sees the queries of a task together (transductive), or each query
  alone (inductive). A learner with an inner loop is also tested after other
  numbers of inner steps.

  Args:
    workdir: the folder of the run, for the pictures.
    recipe: the description of the learner.
    data: the tasks.
    params: the meta-parameters, `[seeds, ...]` if there are several seeds.

  Returns:
    The accuracies by name.
  """
  name, steps = recipe.learner, recipe.num_eval_steps
  own = functools.partial(build, recipe)

  def scored(ways: int, tasks: TaskFamily, **options: bool) -> Estimate:
    score = scoring.scorer(
      own(steps, ways), tasks, METRICS, "test", FLAGS.eval_tasks, **options
    )
    return seeds.over_seeds(score)(params)["accuracy"]

  after = scoring.stepwise_scorer(
    name, own, data.splits.test, METRICS, "test", FLAGS.eval_tasks
  )

  def scored_after(k: int) -> Estimate:
    return seeds.over_seeds(lambda params: after(params, k))(params)["accuracy"]

  def curve() -> dict[int, Estimate]:
    taken = {steps, *learner_options.possible_steps(name, (0, 1, 3, 5, 10))}
    return {k: scored_after(k) for k in sorted(taken)}

  tested = scoring.together(
    {
      "alone": lambda: scored(FLAGS.ways, data.splits.test, transductive=False),
      "curve": curve,
    }
  )
  by_steps = tested["curve"]
  metrics = {
    "accuracy_transductive": by_steps[steps],
    "accuracy_inductive": tested["alone"],
  }
  if len(by_steps) > 1:
    metrics["accuracy_before_adaptation"] = by_steps[0]
    metrics |= {f"accuracy_after_{k}_steps": by_steps[k] for k in by_steps if k}
    plots.curves(
      workdir / "adaptation.png",
      {"test": by_steps},
      "inner steps",
      "test accuracy",
    )
  if FLAGS.pictures == "all":
    metrics |= breadth.test(
      workdir,
      data.test,
      scored,
      own(steps),
      seeds.first(params),
      ways=FLAGS.ways,
      shots=FLAGS.shots,
      any_ways=name in ANY_WAYS,
    )
  plots.learning_curve(
    workdir,
    {"accuracy": "training", "validation/accuracy": "validation"},
    "query accuracy",
  )
  plots.image_episodes(
    workdir / "episodes.png",
    own(steps),
    seeds.first(params),
    data.splits.test,
    rng_keys.evaluation_key("picture"),
    FLAGS.ways,
    channels=data.channels,
  )
  return metrics
