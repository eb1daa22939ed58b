"""Test accuracies of networks that are trained on a small set of images."""

from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from metajax.distillation import (
  SyntheticSet,
  kernel_ridge,
  relu_tangent_kernel,
  unrolled,
)
from metajax.learners import distill_data
from metajax.losses import accuracy
from metajax.models.mlp import MLP
from metajax.runs import scoring
from metajax.runs.flags import FLAGS
from metajax.types import Array, Batch, Episode

flags.DEFINE_integer("hidden", 100, "Units of two layers.", lower_bound=1)

KERNEL = relu_tangent_kernel(2)  # The kernel of two infinitely wide layers.


def network(num_outputs: int) -> MLP:
  return MLP(num_outputs, (FLAGS.hidden, FLAGS.hidden))


def scorer(
  model: MLP, test: Batch, example: SyntheticSet, steps: int
) -> Callable[[SyntheticSet], np.ndarray]:
  """Returns `set -> test accuracies` of --eval_tasks fresh networks.

  Args:
    model: the network. SGD trains it on the set.
    test: the test examples.
    example: a set of the same classes.
    steps: steps of SGD.
  """
  # Each network is a task, and the test set its query.
  tasks = jax.tree_util.Partial(lambda batch, key: Episode(batch, batch), test)
  # The learner is only evaluated, so its objective is never used.
  learner = distill_data(model, unrolled(model, 0), example, steps)
  score = scoring.task_scorer(
    learner, tasks, {"accuracy": accuracy}, "test", FLAGS.eval_tasks
  )
  return lambda synthetic: score(synthetic)["accuracy"]


def right_by_kernel(synthetic: SyntheticSet, test: Batch) -> Array:
  """Returns which test images kernel regression classifies correctly."""
  predict = kernel_ridge(KERNEL, synthetic.inputs, synthetic.targets)
  return predict(test.inputs).argmax(-1) == test.targets
