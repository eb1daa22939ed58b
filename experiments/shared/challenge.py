"""The Omniglot challenge: its sets of alphabets, and errors in its trials."""

import jax
import numpy as np
from absl import flags
from scipy import stats

from metajax.evaluation import solve
from metajax.losses import accuracy
from metajax.runs.flags import FLAGS
from metajax.tasks.omniglot import OmniglotImages
from metajax.tasks.one_shot_runs import MINIMAL
from metajax.training.logging import waiting
from metajax.types import Array, Episode, MetaLearner, Params

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


def characters(data: OmniglotImages, name: str) -> np.ndarray:
  """Returns which characters belong to a set, bool `[1623]`."""
  if name in MINIMAL:
    return data.is_background & np.isin(data.alphabets, MINIMAL[name])
  return data.is_background


@waiting("evaluating on test tasks")
def errors(
  learner: MetaLearner, params: Params, trials: Episode, transductive: bool
) -> Array:
  """Returns the error of each trial, 0 or 1, `[runs, ways]`."""

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
      return 1 - jax.vmap(accuracy)(logits, run.query.targets)

    return jax.lax.map(one, trials)

  return wrong(params, trials)


def binomial_interval(wrong: np.ndarray) -> list[float]:
  """Returns the 95% binomial interval of the error, in percent."""
  interval = stats.binomtest(int(wrong.sum()), wrong.size).proportion_ci()
  return [100 * interval.low, 100 * interval.high]
