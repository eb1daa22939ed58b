"""Fine-tuning on new curves, with a step size chosen for each start."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from experiments.shared import regressors
from metajax import aggregation
from metajax.evaluation import Estimate
from metajax.learners import learned_average, learned_ensemble, maml
from metajax.losses import mean_squared_error
from metajax.runs import scoring
from metajax.runs.flags import FLAGS
from metajax.tasks import sinusoid
from metajax.types import Batch, MetaLearner, Params, PRNGKey

SHOTS = 5
COLUMNS = (1, 5, 10)  # Steps of fine-tuning.
RATES = (0.001, 0.003, 0.01, 0.03)  # Step sizes of SGD for fine-tuning.

Build = Callable[[int, float], MetaLearner]  # (steps, rate) -> learner


def by_sgd(steps: int, rate: float) -> MetaLearner:
  """Returns MAML. With 0 steps it is joint training on all curves."""
  return maml(regressors.MODEL, mean_squared_error, optax.sgd(rate), steps)


def average(steps: int, rate: float, *, members: Params) -> MetaLearner:
  """Returns a learner of the weights of an average, one for each array."""
  learner = by_sgd(steps, rate)
  return learned_average(learner, members, groups=lambda path: path)


def ensemble(steps: int, rate: float, *, members: Params) -> MetaLearner:
  """Returns a learner of the weights of an ensemble of fine-tuned members."""
  pool, learner = aggregation.weighted_average, by_sgd(steps, rate)
  return learned_ensemble(learner, members, pool, mean_squared_error)


@functools.cache
def scorer(
  build: Build, steps: int, split: str
) -> Callable[[tuple[Params, float]], Estimate]:
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
  """Returns the step size with the best validation, and the test errors."""

  def validation(rate: float) -> float:
    scores = [scorer(build, k, "validation")((params, rate)) for k in COLUMNS]
    error = sum(score.mean for score in scores)
    return error if math.isfinite(error) else math.inf

  rate = min(RATES, key=validation)
  return rate, [scorer(build, k, "test")((params, rate)) for k in COLUMNS]


def errors_by_size(
  stack: Params, posterior: Params
) -> dict[str, dict[int, Estimate]]:
  """Returns errors without fine-tuning, by the size of the ensemble."""
  sizes = [n for n in (2, 5, 10, 20, 50, 100, 200) if n < FLAGS.regressors]
  curves: dict[str, dict[int, Estimate]] = {"equal": {}, "learned": {}}
  for size in [*sizes, FLAGS.regressors]:
    members = jax.tree.map(lambda x, n=size: x[:n], stack)
    score = scorer(functools.partial(ensemble, members=members), 0, "test")
    equal = {"logits": jnp.zeros(size), "beta": jnp.zeros(())}
    learned = {**posterior, "logits": posterior["logits"][:size]}
    curves["equal"][size] = score((equal, 0.0))
    curves["learned"][size] = score((learned, 0.0))
  return curves
