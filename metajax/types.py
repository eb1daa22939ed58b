"""The vocabulary of metajax: data, models, learners and task families."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # a pytree of arrays
Metrics = dict[str, Array]  # name -> scalar


class State(NamedTuple):
  """Marks a part of the parameters that is state, not weights.

  Running statistics are the usual example. Arrays under a `State` node get no
  gradient, no weight decay and no optimizer step, in the inner loop and in the
  outer one. They are copied and written to checkpoints like the weights.

  In training, each pass of the model replaces the state by a new one, computed
  from the batch of that pass. Each task updates a copy of its own, in its inner
  loop and on its query. The new state of the meta-parameters is the mean of the
  tasks' copies.

  Attributes:
    value: any tree of arrays; without random keys in what a trainer trains.
  """

  value: Any


class Batch(NamedTuple):
  """Labelled examples with a leading example axis.

  Attributes:
    inputs: array `[n, ...]`, or a tree of such arrays.
    targets: array `[n, ...]`, or a tree of such arrays; class indices `[n]` for
      classification.
    mask: `[n]` bool, True for real examples. The other examples are padding.
      Padding must be finite, and has no effect on any result. None means that
      all examples are real.
  """

  inputs: Any
  targets: Any
  mask: Array | None = None


class Episode(NamedTuple):
  """One task: examples to learn from, and examples to test on.

  Attributes:
    support: the examples, with labels, that the learner adapts to.
    query: other examples of the same task, disjoint from the support.
  """

  support: Batch
  query: Batch


class Model(Protocol):
  """Two pure functions, `init` and `apply`. Any `flax.linen.Module` is a model.

  A model with running statistics or dropout has a third function for training.
  Its `apply` is then for evaluation only::

    train(params, inputs, rng) -> (predictions, params)

  The running statistics are `State` nodes of the parameters. `train` returns
  parameters with new statistics. If the predictions of one example depend on
  other examples, both functions take the keyword `mask` (see `Batch`).
  `metajax.models.adapters` makes such models from modules of flax, equinox and
  haiku.
  """

  def init(self, rng: PRNGKey, inputs: Any, /) -> Params:
    """Returns fresh parameters for inputs `[n, ...]`."""

  def apply(self, params: Params, inputs: Any, /) -> Any:
    """Returns predictions `[n, ...]` for inputs `[n, ...]`."""


class LossFn(Protocol):
  """A mean loss over the examples of a batch.

  A loss that is not a mean over examples must take the keyword `mask` to be
  used with masked batches.
  """

  def __call__(self, predictions: Any, targets: Any, /) -> Array:
    """Returns a scalar."""


class TaskFamily(Protocol):
  """A distribution of tasks: a pure function from a key to one episode.

  A family with a data set is a `jax.tree_util.Partial` over its arrays. The
  arrays then enter compiled programs as arguments, not as constants.
  """

  def __call__(self, rng: PRNGKey, /) -> Episode:
    """Returns one task, unbatched."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """A task family whose examples are read from a disk.

  It is a task family like any other. Called with a key, also in a compiled
  program, it reads the examples of one task. Trainers and evaluators read ahead
  instead, while the device computes.

  Attributes:
    task: `(rng) -> Episode`, the task family.
    ahead: `(key_of, numbers) -> iterator`. The iterator reads what the tasks
      with the keys `key_of(number)` need, in the order of the range `numbers`.
      It returns a tree of numpy arrays for each task. `key_of` must be
      picklable, and is called on the host.
    finish: `(data, rng) -> Episode`, a pure function that JAX can trace. It
      makes a task of what the iterator returned and of the key of the task.
  """

  task: TaskFamily
  ahead: Callable[[Callable[[int], PRNGKey], range], Iterator[Any]]
  finish: Callable[[Any, PRNGKey], Episode]

  def __call__(self, rng: PRNGKey, /) -> Episode:
    """Returns one task, unbatched."""
    return self.task(rng)

  def changed(self, change: Callable[[TaskFamily], TaskFamily]) -> "Stream":
    """Applies a change of task families, such as an augmentation."""

    def finish(data: Any, rng: PRNGKey) -> Episode:
      return change(lambda key: self.finish(data, key))(rng)

    return Stream(change(self.task), self.ahead, finish)


def as_partial(tasks: Callable[..., Any]) -> jax.tree_util.Partial:
  """Turns a task family or a loss into a pytree of its arrays.

  The arrays are found in the arguments of a `Partial`, or in a callable that is
  itself a pytree. Numpy arrays are converted to JAX arrays at each call,
  because a traced index cannot index a numpy array. Numbers, strings and
  functions are not traced, so they can define shapes.
  """
  function: Any = tasks.task if isinstance(tasks, Stream) else tasks
  args: tuple = ()
  keywords: dict[str, Any] = {}
  while isinstance(function, jax.tree_util.Partial):
    args = (*function.args, *args)
    keywords = {**function.keywords, **keywords}
    function = function.func
    # JAX wraps a partial within a `Partial` in a class of its own.
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
  """Disjoint task families for training, validation and test."""

  train: TaskFamily
  validation: TaskFamily
  test: TaskFamily


class MetaLearner(NamedTuple):
  """A meta-learning algorithm as a tuple of pure functions.

  Attributes:
    init: `(rng, example_inputs) -> meta_params`. `example_inputs` are the
      support inputs `[n, ...]` of one task.
    adapt: `(meta_params, support, rng) -> task_params`. Learns one task from
      its support, unbatched. Nothing is kept for a backward pass unless the
      call is differentiated.
    predict: `(task_params, inputs) -> predictions` for the inputs `[n, ...]` of
      one task. Queries with a mask pass it as the keyword `mask`.
    meta_grad: `(meta_params, episodes, rng) -> (grads, metrics)`. Returns an
      estimate of the meta-gradient and scalar metrics, both averaged over a
      chunk of tasks (episodes with a leading task axis). The `State` nodes of
      `grads` hold the new state, not a gradient.
    schedule: `(step) -> MetaLearner`, for a learner that changes during
      training. `step` is the meta-step, an int32 scalar. The other four
      functions are then those of the end of training. None: the learner is the
      same at every step.
  """

  init: Callable[[PRNGKey, Any], Params]
  adapt: Callable[[Params, Batch, PRNGKey], Params]
  predict: Callable[..., Any]
  meta_grad: Callable[[Params, Episode, PRNGKey], tuple[Params, Metrics]]
  schedule: Callable[[Array], "MetaLearner"] | None = None

  def carried(self) -> "MetaLearner":
    """Returns the learner as a pytree of the arrays that it carries.

    A learner's function may be a `jax.tree_util.Partial` over arrays, such as
    those of a teacher or of several models to combine. These arrays are then
    arguments of the compiled programs, not constants in them.
    """
    functions: Any = (
      f
      if f is None or isinstance(f, jax.tree_util.Partial)
      else jax.tree_util.Partial(f)
      for f in self
    )
    return MetaLearner(*functions)

  def at_step(self, step: Array) -> "MetaLearner":
    """Returns the learner for the given meta-step of training."""
    return self if self.schedule is None else self.schedule(step)
