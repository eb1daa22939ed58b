"""Omniglot with one image per class and conv4, for scripts that combine runs.

These scripts define their flags by `metajax.runs.finished.define_runs`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from metajax.learners import ENCODED, REGISTRY
from metajax.losses import accuracy, cross_entropy
from metajax.models.conv import conv4
from metajax.runs import scoring
from metajax.runs.finished import Run, read_run
from metajax.runs.flags import FLAGS, flag_values
from metajax.tasks import omniglot
from metajax.training.logging import waiting
from metajax.types import MetaLearner, Model, Params, Splits, TaskFamily

SHOTS = 1  # Images per class in the support and in the query.
METRICS = {"accuracy": accuracy}


@waiting("loading data")
def tasks() -> Splits:
  """Returns the tasks of each split."""
  return omniglot(
    FLAGS.data_dir, ways=FLAGS.ways, shots=SHOTS, query_shots=SHOTS
  )


def network() -> Model:
  return conv4(FLAGS.ways, filters=FLAGS.filters)


def learner(eval_steps: int) -> MetaLearner:
  """Returns the learner of the flags, with `eval_steps` inner steps at test."""
  return REGISTRY[FLAGS.learner](
    network(),
    cross_entropy,
    optax.sgd(FLAGS.inner_lr),
    FLAGS.inner_steps,
    num_eval_steps=eval_steps,
    metrics=METRICS,
    memory=FLAGS.memory,
  )


def image(family: TaskFamily) -> jax.ShapeDtypeStruct:
  """Returns the shape and dtype of the support images of a task."""
  return jax.eval_shape(family, jax.random.key(0)).support.inputs


def check_initialisation(learner: MetaLearner, family: TaskFamily) -> None:
  """Checks that the meta-parameters are an initialisation of the network.

  Raises:
    ValueError: if they are not.
  """
  trees = [
    jax.tree.structure(jax.eval_shape(x.init, jax.random.key(0), image(family)))
    for x in (learner, network())
  ]
  if FLAGS.learner in ENCODED or trees[0] != trees[1]:
    raise ValueError(
      f"--learner={FLAGS.learner} does not learn the initialisation of a "
      "classifier, which is combined here: choose maml, or another that does."
    )


def finished(found: Sequence[Run], family: TaskFamily) -> list[Params]:
  """Reads the meta-parameters of finished runs."""
  return [read_run(run, network(), image(family)) for run in found]


def scorer(
  learner: MetaLearner, splits: Splits, split: str
) -> Callable[[Params], np.ndarray]:
  """Returns `meta_params -> accuracies` on the fixed tasks of a split."""
  num_tasks = {"validation": 200, "test": FLAGS.eval_tasks}[split]
  score = scoring.task_scorer(
    learner, getattr(splits, split), METRICS, split, num_tasks
  )
  return lambda params: score(params)["accuracy"]


def protocol() -> dict[str, Any]:
  """Returns the entries of tasks, network and inner loop in `results.json`."""
  return {
    "shots": SHOTS,
    "query_shots": SHOTS,
    "normalization": "batch",
    "transductive": True,
    **flag_values("ways", "filters"),
    **flag_values("inner_steps", "eval_inner_steps", "inner_lr"),
  }
