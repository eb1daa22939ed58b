"""Trains several seeds in one program, by --num_seeds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from metajax.evaluation import Estimate, estimate_over_seeds
from metajax.runs.flags import FLAGS, MAX_SEED
from metajax.types import Params, PRNGKey

flags.DEFINE_integer(
  "num_seeds",
  1,
  "Number of trainings in one program, with --seed and the seeds after it. "
  "Results are means over these seeds, with the 95% interval of the mean of "
  "another seed.",
  lower_bound=1,
)


def keys(key_of: Callable[[int], PRNGKey]) -> PRNGKey:
  """Stacks the keys of the seeds. For one seed, returns its key alone.

  Raises:
    ValueError: if the last seed is too large.
  """
  if FLAGS.num_seeds == 1:
    return key_of(0)
  last = FLAGS.seed + FLAGS.num_seeds - 1
  if last > MAX_SEED:
    raise ValueError(f"--num_seeds: the last seed is {last}, over {MAX_SEED}.")
  return jnp.stack([key_of(i) for i in range(FLAGS.num_seeds)])


def first(params: Params) -> Params:
  """Returns the meta-parameters of the first seed, for pictures."""
  if FLAGS.num_seeds == 1:
    return params
  return jax.tree.map(lambda x: x[0], params)


def over_seeds(
  score: Callable[[Params], dict[str, Estimate]],
) -> Callable[[Params], dict[str, Estimate]]:
  """Scores every seed's meta-parameters and returns means over the seeds.

  The interval is that of Student's t for the means of the S seeds, `t S^-1/2
  std`. The means already contain the noise of the tasks. The number of tasks is
  the sum over the seeds.
  """
  if FLAGS.num_seeds == 1:
    return score

  def score_all(params: Params) -> dict[str, Estimate]:
    every = [
      score(jax.tree.map(lambda x, i=i: x[i], params))
      for i in range(FLAGS.num_seeds)
    ]
    return {
      name: _over_seeds([estimates[name] for estimates in every])
      for name in every[0]
    }

  return score_all


def _over_seeds(estimates: list[Estimate]) -> Estimate:
  num_tasks = sum(e.num_tasks for e in estimates)
  return estimate_over_seeds([e.mean for e in estimates], num_tasks)
