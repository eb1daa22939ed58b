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

KERNEL = relu_tangent_kernel(2)  # Of two layers of infinite width.


def network(num_outputs: int) -> MLP:
  return MLP(num_outputs, (FLAGS.hidden, FLAGS.hidden))


def scorer(
  model: MLP, test: Batch, example: SyntheticSet, steps: int
) -> Callable[[SyntheticSet], np.ndarray]:
  """Returns `set -> test accuracies` of --eval_tasks fresh networks.

  Args:
    model: the network, trained on the set by SGD.
    test: what it is tested on.
    example: a set of the same classes.
    steps: of SGD.
  """
  # Each network is a task, and the test set its query.
  tasks = jax.tree_util.Partial(lambda batch, key: Episode(batch, batch), test)
  # Only evaluated, so the objective is none.
  learner = distill_data(model, unrolled(model, 0), example, steps)
  score = scoring.task_scorer(
    learner, tasks, {"accuracy": accuracy}, "test", FLAGS.eval_tasks
  )
  return lambda synthetic: score(synthetic)["accuracy"]


def right_by_kernel(synthetic: SyntheticSet, test: Batch) -> Array:
  """Tells which test images regression with the kernel itself gets right."""
  predict = kernel_ridge(KERNEL, synthetic.inputs, synthetic.targets)
  return predict(test.inputs).argmax(-1) == test.targets
