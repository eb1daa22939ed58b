"""The vocabulary of metajax: data, models, learners and task families."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # a pytree of arrays
Metrics = dict[str, Array]  # name -> scalar


class State(NamedTuple):
  """Marks what is no weight in a tree of parameters: running statistics, say.

  Whatever lies under a `State` node gets no gradient, no decay and no step,
  neither in an inner loop nor in the outer one; it is kept, copied and written
  to checkpoints with the weights beside it. Who changes it: every pass of a
  model in training, by the batch of that pass, in the copy of whoever makes
  the pass. A task's copy goes through its inner loop and its query, and the
  mean of the tasks' copies is the new state of the meta-parameters.

  Attributes:
    value: any tree of arrays.
  """

  value: Any


class Batch(NamedTuple):
  """Labelled examples with a leading example axis.

  Attributes:
    inputs: array `[n, ...]`, or a tree of such arrays.
    targets: array `[n, ...]`, or a tree of such arrays; class indices `[n]` for
      classification.
    mask: `[n]` bool, True where an example is real. The others are padding:
      finite numbers that count nowhere. None: all are real.
  """

  inputs: Any
  targets: Any
  mask: Array | None = None


class Episode(NamedTuple):
  """One task: examples to learn from and examples to be judged on.

  Attributes:
    support: the examples the fast learner sees, labels included.
    query: other examples of the same task, disjoint from the support.
  """

  support: Batch
  query: Batch


class Model(Protocol):
  """A pair of pure functions; any `flax.linen.Module` is one.

  A model with running statistics or dropout has a third one, for training
  (`apply` is then that of evaluation)::

    train(params, inputs, rng) -> (predictions, params)

  Statistics lie under `State` nodes of the parameters, and those that `train`
  returns have the new ones. A model that lets examples see each other takes
  `mask` as a keyword, too (see `Batch`), in both functions.
  `metajax.models.adapters` makes such models of the modules of flax, equinox
  and haiku.
  """

  def init(self, rng: PRNGKey, inputs: Any, /) -> Params:
    """Returns fresh parameters for inputs `[n, ...]`."""

  def apply(self, params: Params, inputs: Any, /) -> Any:
    """Returns predictions `[n, ...]` for inputs `[n, ...]`."""


class LossFn(Protocol):
  """A mean loss over the examples of a batch.

  A loss that is no mean of what it is for each example alone takes `mask` as a
  keyword, if it is to be used with masked batches.
  """

  def __call__(self, predictions: Any, targets: Any, /) -> Array:
    """Returns a scalar."""


class TaskFamily(Protocol):
  """A distribution of tasks: a pure function from a key to one episode.

  A family that carries arrays (a data set) is a `jax.tree_util.Partial` over
  them, so that they enter compiled programs as arguments, not as constants.
  """

  def __call__(self, rng: PRNGKey, /) -> Episode:
    """Returns one task, unbatched."""


def as_partial(tasks: Callable[..., Any]) -> jax.tree_util.Partial:
  """Makes a task family, or a loss, a pytree of the arrays that it carries.

  They are those in the arguments of a `Partial`, or in a callable that is a
  pytree itself. Arrays of numpy become jax's when the family is called, since a
  traced key cannot index the others. Whatever is no array (numbers, strings,
  functions) is not traced, so that it may say shapes.
  """
  function: Any = tasks
  args: tuple = ()
  keywords: dict[str, Any] = {}
  while isinstance(function, jax.tree_util.Partial):
    args = (*function.args, *args)
    keywords = {**function.keywords, **keywords}
    function = function.func
    # A partial within a `Partial` is in a box of jax's.
    if hasattr(function, "func") and hasattr(function, "fun"):
      function = function.fun
  leaves, tree = jax.tree.flatten((function, args, keywords))
  arrays = [x if _is_array(x) else None for x in leaves]
  others = [None if _is_array(x) else x for x in leaves]

  def call(arrays: list[Array | None], *arguments: Any) -> Any:
    whole = [
      other if array is None else jnp.asarray(array)
      for array, other in zip(arrays, others, strict=True)
    ]
    function, args, keywords = jax.tree.unflatten(tree, whole)
    return function(*args, *arguments, **keywords)

  return jax.tree_util.Partial(call, arrays)


def _is_array(x: Any) -> bool:
  if isinstance(x, np.ndarray):
    return x.dtype == bool or jnp.issubdtype(x.dtype, np.number)
  return isinstance(x, jax.Array)


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
    predict: `(task_params, inputs) -> predictions`, one task, `[n, ...]`. It is
      given `mask` as a keyword where a query has one.
    meta_grad: `(meta_params, episodes, rng) -> (grads, metrics)`, slow
      learning: the estimate of the meta-gradient, averaged over a chunk of
      tasks (episodes with a leading task axis), and scalar metrics, likewise.
      The `State` nodes of `grads` hold the new state, no gradient.
    schedule: `(step) -> MetaLearner` for a learner that changes in training, by
      the meta-step, an int32 scalar; the other functions are what it becomes in
      the end. None: it is the same at every step.
  """

  init: Callable[[PRNGKey, Any], Params]
  adapt: Callable[[Params, Batch, PRNGKey], Params]
  predict: Callable[..., Any]
  meta_grad: Callable[[Params, Episode, PRNGKey], tuple[Params, Metrics]]
  schedule: Callable[[Array], "MetaLearner"] | None = None

  def carried(self) -> "MetaLearner":
    """Returns the learner as a pytree of the arrays that it carries.

    As a task family may, a function of a learner may be a
    `jax.tree_util.Partial` over arrays (of models that it combines, of a
    teacher), which are then arguments of the programs that call it, and no
    constants within them.
    """
    functions: Any = (
      f
      if f is None or isinstance(f, jax.tree_util.Partial)
      else jax.tree_util.Partial(f)
      for f in self
    )
    return MetaLearner(*functions)

  def at_step(self, step: Array) -> "MetaLearner":
    """Returns the learner as it is at a meta-step of the training."""
    return self if self.schedule is None else self.schedule(step)
