"""The Omniglot challenge: its sets of alphabets, and errors in its trials."""

from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from scipy import stats

from metajax.evaluation import solve
from metajax.losses import accuracy
from metajax.runs import rng_keys
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


def scorer(
  learner: MetaLearner, trials: Episode, transductive: bool
) -> Callable[[Params], Array]:
  """Returns `params -> errors [runs, ways]` of the trials, each 0 or 1."""
  runs = len(trials.query.targets)
  keys = jax.random.split(rng_keys.evaluation_key("test"), runs)

  @jax.jit
  def wrong(params: Params, trials: Episode) -> Array:
    def one(run: Episode, key: Array) -> Array:
      logits = solve(
        learner,
        params,
        run.support,
        run.query.inputs,
        key,
        transductive=transductive,
      )
      return 1 - jax.vmap(accuracy)(logits, run.query.targets)

    return jax.lax.map(lambda both: one(*both), (trials, keys))

  return waiting("evaluating on test tasks")(
    lambda params: wrong(params, trials)
  )


def binomial_interval(wrong: np.ndarray) -> list[float]:
  """Returns the 95% binomial interval of the error, in percent."""
  interval = stats.binomtest(int(wrong.sum()), wrong.size).proportion_ci()
  return [100 * interval.low, 100 * interval.high]
