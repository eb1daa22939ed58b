"""The random keys of a run, one for each purpose, from its flags."""

import jax

from metajax.runs.flags import FLAGS
from metajax.types import PRNGKey


def init_key(seed: int = 0) -> PRNGKey:
  """Returns the key of the initial parameters, for --seed plus `seed`."""
  return jax.random.fold_in(jax.random.key(FLAGS.seed + seed), 0)


def task_key(seed: int = 0) -> PRNGKey:
  """Returns the key of all training tasks, for --seed plus `seed`."""
  return jax.random.fold_in(jax.random.key(FLAGS.seed + seed), 1)


def statistics_key(seed: int = 0) -> PRNGKey:
  """Returns the key of the examples of new statistics, as `init_key`."""
  return jax.random.fold_in(jax.random.key(FLAGS.seed + seed), 6)


def evaluation_key(split: str) -> PRNGKey:
  """Returns the key of the fixed tasks of "validation", "test", "picture"."""
  # Each purpose has a number of its own. Evaluation tasks therefore differ from
  # training tasks, whose number is 1, even if the seeds are equal.
  purpose = {"validation": 2, "test": 3, "picture": 4}[split]
  return jax.random.fold_in(jax.random.key(FLAGS.eval_seed), purpose)
