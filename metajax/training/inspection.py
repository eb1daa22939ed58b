"""Inspects the meta-gradients of one meta-step, task by task."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.training.state import TrainState, all_finite, gradient_norm
from metajax.training.step import task_keys
from metajax.types import MetaLearner, PRNGKey, TaskFamily, as_partial


class Inspection(NamedTuple):
  """The metrics and gradients of the B tasks of a meta-step.

  Attributes:
    metrics: arrays `[B]` by name. They are the learner's metrics and
      "gradient_norm", the Euclidean norm of the task's meta-gradient. As in
      `meta_trainer`, `State` nodes do not count.
    finite: bool arrays `[B]` by the path of a meta-parameter. They say whether
      the task's gradient of this array is finite.
  """

  metrics: dict[str, np.ndarray]
  finite: dict[str, np.ndarray]


def inspect_step(
  learner: MetaLearner,
  tasks: TaskFamily,
  state: TrainState,
  *,
  meta_batch: int,
  rng: PRNGKey,
) -> Inspection:
  """Computes the meta-gradient of each task of the step after a state.

  The tasks are those that `meta_trainer` draws with the same `meta_batch` and
  `rng`. The mean of their gradients is its gradient. Only a learner that draws
  random numbers itself draws other numbers here. With `jax_debug_nans`, JAX
  raises at the operation that computes the first NaN.

  Args:
    learner: the meta-learner.
    tasks: the task family.
    state: a training state. Its `step` decides which tasks are drawn.
    meta_batch: B, tasks per meta-step.
    rng: the key from which all tasks are drawn.
  """

  @jax.jit
  def of_task(params, given, key, own_key):
    tasks, learner = given
    episode = jax.tree.map(lambda x: x[None], tasks(key))
    learner = learner.at_step(state.step)
    grads, metrics = learner.meta_grad(params, episode, own_key)
    metrics = {**metrics, "gradient_norm": gradient_norm(grads)}
    return metrics, jax.tree.map(all_finite, grads)

  keys = task_keys(rng, state.step, jnp.arange(meta_batch))
  # Those of the learner, as in a training of one task at a time.
  own_keys = task_keys(rng, state.step, meta_batch + jnp.arange(meta_batch))
  given = jax.device_put((as_partial(tasks), learner.carried()))
  found = [
    of_task(state.meta_params, given, *pair)
    for pair in zip(keys, own_keys, strict=True)
  ]
  metrics, finite = jax.tree.map(lambda *x: np.stack(x), *found)
  by_path = jax.tree_util.tree_leaves_with_path(finite)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return Inspection(metrics, {name(path): leaf for path, leaf in by_path})
