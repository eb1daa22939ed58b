"""The random keys of a run, one for each purpose, by its flags."""

import jax

from metajax.runs.flags import FLAGS
from metajax.types import PRNGKey


def init_key(seed: int = 0) -> PRNGKey:
  """The key of the initial parameters, `seed` beyond the seed of the flags."""
  return jax.random.fold_in(jax.random.key(FLAGS.seed + seed), 0)


def task_key(seed: int = 0) -> PRNGKey:
  """The key of all training tasks, `seed` beyond the seed of the flags."""
  return jax.random.fold_in(jax.random.key(FLAGS.seed + seed), 1)


def evaluation_key(split: str) -> PRNGKey:
  """The key of the fixed tasks of "validation" or "test"."""
  # A purpose of its own for each key: training tasks are drawn from 1, whatever
  # the seeds.
  purpose = {"validation": 2, "test": 3}[split]
  return jax.random.fold_in(jax.random.key(FLAGS.eval_seed), purpose)
