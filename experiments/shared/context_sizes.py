"""Scores of a learner and of the best answer at several sizes of a support."""

from collections.abc import Callable
from pathlib import Path

from experiments.shared.random_functions import Scorer, best
from metajax import context
from metajax.evaluation import Estimate, estimate
from metajax.predictive import mean_error
from metajax.runs import plots
from metajax.runs.flags import FLAGS
from metajax.tasks.known import KnownTasks
from metajax.types import LossFn, MetaLearner, Params

QUERY_SHOTS = 30


def by_size(
  workdir: Path,
  learner: MetaLearner,
  params: Params,
  family: Callable[..., KnownTasks],
  test: Scorer,
  reference: str,
  joint: bool,
) -> dict[str, Estimate]:
  """Scores and draws each size of --eval_shots, on 30 queries a task.

  Args:
    workdir: the folder of the run. The pictures are `context_size.png`, of the
      log-likelihood, and `context_size_error.png`, of the squared error.
    learner: the learner.
    params: its meta-parameters.
    family: `(shots, query_shots) -> tasks`.
    test: scores a learner on the test tasks.
    reference: "exact" or "oracle", see `random_functions.best`.
    joint: whether log-likelihoods are of the joint density of a task.

  Returns:
    The log-likelihoods and squared errors, for `results.json`.
  """
  name, metrics = FLAGS.learner, {}
  scores: dict[str, LossFn] = {
    "log_likelihood": context.log_density,
    "squared_error": context.of_marginals(mean_error),
  }
  curves: dict[str, dict[str, dict[float, Estimate]]] = {
    score: {name: {}, reference: {}} for score in scores
  }
  for shots in FLAGS.eval_shots:
    some = family(shots=shots, query_shots=QUERY_SHOTS)
    own = test(learner, some, scores)(params)
    other = {
      "log_likelihood": best(some, test, joint, reference),
      "squared_error": best(some, test, False, reference, mean_error),
    }
    for score, lines in curves.items():
      lines[name][shots] = estimate(own[score])
      lines[reference][shots] = estimate(other[score])
      metrics[f"{score}_{shots}_shot"] = lines[name][shots]
      metrics[f"{reference}_{score}_{shots}_shot"] = lines[reference][shots]
  plots.curves(
    workdir / "context_size.png",
    curves["log_likelihood"],
    "support points",
    "log-likelihood in nats for each target",
  )
  plots.curves(
    workdir / "context_size_error.png",
    curves["squared_error"],
    "support points",
    "mean squared error",
    log="y",
  )
  return metrics
