"""The vocabulary of metajax: data, models, learners and task families."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # a pytree of arrays
Metrics = dict[str, Array]  # name -> scalar


class Batch(NamedTuple):
  """Labelled examples with a leading example axis.

  Attributes:
    inputs: array `[n, ...]`.
    targets: array `[n, ...]`; class indices `[n]` for classification.
  """

  inputs: Array
  targets: Array


class Episode(NamedTuple):
  """One task: examples to learn from and examples to be judged on.

  Attributes:
    support: the examples the fast learner sees, labels included.
    query: other examples of the same task, disjoint from the support.
  """

  support: Batch
  query: Batch


class Model(Protocol):
  """A pair of pure functions; any `flax.linen.Module` is one."""

  def init(self, rng: PRNGKey, inputs: Array, /) -> Params:
    """Returns fresh parameters for inputs `[n, ...]`."""

  def apply(self, params: Params, inputs: Array, /) -> Array:
    """Returns predictions `[n, ...]` for inputs `[n, ...]`."""


class LossFn(Protocol):
  """A mean loss over the examples of a batch."""

  def __call__(self, predictions: Array, targets: Array, /) -> Array:
    """Returns a scalar."""


class TaskFamily(Protocol):
  """A distribution of tasks: a pure function from a key to one episode.

  A family that carries arrays (a data set) is a `jax.tree_util.Partial` over
  them, so that they enter compiled programs as arguments, not as constants.
  """

  def __call__(self, rng: PRNGKey, /) -> Episode:
    """Returns one task, unbatched."""


def as_partial(tasks: TaskFamily) -> jax.tree_util.Partial:
  """Makes any task family a pytree of the arrays that it carries.

  A `Partial` around a `Partial` would hide the arrays of the inner one.
  """
  if isinstance(tasks, jax.tree_util.Partial):
    return tasks
  return jax.tree_util.Partial(tasks)


class Splits(NamedTuple):
  """Disjoint task families for training, for choosing and for reporting."""

  train: TaskFamily
  validation: TaskFamily
  test: TaskFamily


class MetaLearner(NamedTuple):
  """A meta-learning algorithm as a tuple of pure functions.

  Attributes:
    init: `(rng, example_inputs) -> meta_params`, where `example_inputs` are
      the support inputs `[n, ...]` of one task.
    adapt: `(meta_params, support, rng) -> task_params`, fast learning on one
      task, unbatched. Builds no graph unless somebody differentiates it.
    predict: `(task_params, inputs) -> predictions`, one task, `[n, ...]`.
    meta_grad: `(meta_params, episodes, rng) -> (grads, metrics)`, slow
      learning: the estimate of the meta-gradient, averaged over a chunk of
      tasks (episodes with a leading task axis), and scalar metrics, likewise.
    schedule: `(step) -> MetaLearner` for a learner that changes in training, by
      the meta-step, an int32 scalar; the other functions are what it becomes in
      the end. None: it is the same at every step.
  """

  init: Callable[[PRNGKey, Array], Params]
  adapt: Callable[[Params, Batch, PRNGKey], Params]
  predict: Callable[[Params, Array], Array]
  meta_grad: Callable[[Params, Episode, PRNGKey], tuple[Params, Metrics]]
  schedule: Callable[[Array], "MetaLearner"] | None = None

  def at_step(self, step: Array) -> "MetaLearner":
    """Returns the learner as it is at a meta-step of the training."""
    return self if self.schedule is None else self.schedule(step)
