"""Scores a meta-learner on new tasks, with confidence intervals."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from metajax.batches import real
from metajax.forward import takes_mask
from metajax.losses import over_examples
from metajax.numerics import check_counts
from metajax.task_checks import check_learner, check_tasks
from metajax.training.mesh import TASKS, task_mesh, under
from metajax.training.processes import place
from metajax.training.streaming import blocks, check_one_process, keys_on_host
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
  Stream,
  TaskFamily,
  as_partial,
)

# Steps, seeds and task indices are less than 2^31, so none of them equals this.
TAG = np.uint32(0xE7A15EED)


class Estimate(NamedTuple):
  """A mean over tasks with its confidence interval.

  Attributes:
    mean: the mean of one value per task.
    ci95: half the width of the 95% confidence interval of the mean,
      `1.96 * std / sqrt(num_tasks)`, for independent tasks.
    num_tasks: the number of tasks.
  """

  mean: float
  ci95: float
  num_tasks: int

  @property
  def of_seeds(self) -> tuple[float, ...]:
    """The mean of each training, if there are several trainings."""
    return ()


class OverSeeds(Estimate):
  """A mean over several trainings, each with another seed.

  The interval is `t S^-1/2 std` over the S trainings' means, with Student's t.

  Attributes:
    of_seeds: the mean of each training.
  """

  of_seeds: tuple[float, ...] = ()

  def __new__(
    cls, mean: float, ci95: float, num_tasks: int, of_seeds: Sequence[float]
  ) -> "OverSeeds":
    """Takes the fields of an `Estimate`, and the mean of each training."""
    self = super().__new__(cls, mean, ci95, num_tasks)
    self.of_seeds = tuple(of_seeds)
    return self


def estimate(values: ArrayLike) -> Estimate:
  """Averages one value per task, `[num_tasks]`, with its interval."""
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or values.size < 2:
    raise ValueError(
      f"values of shape {values.shape}: an interval needs one value for each "
      "of at least 2 tasks."
    )
  ci95 = 1.96 * values.std(ddof=1) / np.sqrt(values.size)
  return Estimate(float(values.mean()), float(ci95), values.size)


def estimate_over_seeds(means: Sequence[float], num_tasks: int) -> OverSeeds:
  """Returns the mean of trainings, `[S]`, and its interval.

  The interval is that of Student's t, `t S^-1/2 std`, in which the mean of
  another training lies beside this one's; NaN of one training alone.

  Args:
    means: the mean over its tasks of each training.
    num_tasks: tasks of all trainings.
  """
  import scipy.special

  values = np.asarray(means, np.float64)
  if values.ndim != 1 or not values.size:
    raise ValueError(
      f"means of shape {values.shape}: must be one of each training, [S]."
    )
  ci95 = math.nan
  if len(values) > 1:
    t = scipy.special.stdtrit(len(values) - 1, 0.975)
    ci95 = t * values.std(ddof=1) / np.sqrt(len(values))
  return OverSeeds(
    float(values.mean()), float(ci95), num_tasks, values.tolist()
  )


def evaluate(
  learner: MetaLearner,
  meta_params: Params,
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  rng: PRNGKey,
  *,
  num_tasks: int = 600,
  task_chunk: int = 8,
  transductive: bool = True,
  mesh: Mesh | None = None,
) -> dict[str, Estimate]:
  """Adapts to new tasks and scores the predictions on their queries.

  To evaluate several meta-parameters on the same tasks, build an `evaluator`
  once. It compiles what it does, and is not to be called within `jax.jit` or
  `jax.vmap`.

  Args:
    learner: the meta-learner. Its `adapt` defines the number of inner steps.
    meta_params: its meta-parameters.
    tasks: the task family to score on.
    metrics: `(predictions, targets) -> scalar` functions by name.
    rng: the key that determines the tasks. It may equal the trainer's key: the
      tasks differ from the training tasks all the same (see `evaluation_keys`).
    num_tasks: the number of tasks, at least 2.
    task_chunk: tasks computed at once on a device; bounds the memory.
    transductive: whether the queries of a task are predicted together. If
      False, each query is predicted alone, together with the support inputs. A
      model that normalises by batch statistics then cannot use the other
      queries (Nichol et al. 2018, section 6.1), and a joint distribution of
      queries becomes that of each alone. The model decides whether evaluation
      uses running or batch statistics (see `models.adapters`).
    mesh: spreads the tasks over its devices; None: one device.

  Returns:
    An `Estimate` for each metric.

  Raises:
    ValueError: if `num_tasks` is less than 2 or `task_chunk` less than 1, or if
      a metric is no scalar.

  References:
    Nichol et al., `On First-Order Meta-Learning Algorithms
    <https://arxiv.org/abs/1803.02999>`_, 2018.
  """
  score = evaluator(
    learner,
    tasks,
    metrics,
    rng,
    num_tasks=num_tasks,
    task_chunk=task_chunk,
    transductive=transductive,
    mesh=mesh,
  )
  values = score(meta_params)
  for name, value in values.items():
    if value.ndim != 1:
      raise ValueError(
        f"metrics: {name!r} returned the shape {value.shape[1:]}, must be a "
        "scalar, the mean of a task."
      )
  return {name: estimate(value) for name, value in values.items()}


def evaluator(
  learner: MetaLearner | Callable[[Any], MetaLearner],
  tasks: TaskFamily,
  metrics: Mapping[str, LossFn],
  rng: PRNGKey,
  *,
  num_tasks: int = 600,
  task_chunk: int = 8,
  transductive: bool = True,
  mesh: Mesh | None = None,
) -> Callable[..., dict[str, np.ndarray]]:
  """Returns `meta_params -> {metric: values [num_tasks]}`, compiled once.

  The arguments are those of `evaluate`. Every call uses the same tasks, so
  differences between calls are paired.

  `learner` may also be a function that builds the learner from arrays. The
  result is then `(meta_params, arrays) -> {metric: values}`. One program serves
  all values of the arrays, such as the number of inner steps::

    score = evaluator(lambda k: maml(..., num_eval_steps=k), ...)
    curve = [score(meta_params, k) for k in (0, 1, 5, 10)]
  """
  check_counts(num_tasks=num_tasks, at_least=2)
  check_counts(task_chunk=task_chunk)
  check_tasks(tasks)
  if not isinstance(metrics, Mapping):
    raise ValueError(
      f"metrics: a {type(metrics).__name__} given, must be a dict of functions "
      "by name, {'accuracy': accuracy}."
    )
  for name, metric in metrics.items():
    if not callable(metric):
      raise ValueError(
        f"metrics: {name!r} is {metric!r}, must be a function, such as "
        "metajax.losses.accuracy."
      )
  if not callable(learner):
    check_learner(learner)
  mesh = task_mesh(1, jax.local_devices()) if mesh is None else mesh
  fixed = learner if isinstance(learner, MetaLearner) else None
  build = None if isinstance(learner, MetaLearner) else learner
  # A task is `task_of(*data, key)`. The data are what the host reads, if any.
  task_of: Any = tasks
  stream = tasks if isinstance(tasks, Stream) else None
  if stream is not None:
    check_one_process()
    task_of = stream.finish

  def draw_task(tasks, key, data):
    task_key, adapt_key = jax.random.split(key)
    return tasks(*data, task_key), adapt_key

  def score_task(meta_params, learner, arrays, episode, rng):
    if build is not None:
      learner = build(arrays)
    support, query = episode
    predictions = solve(
      learner,
      meta_params,
      support,
      query.inputs,
      rng,
      transductive=transductive,
      mask=query.mask,
    )
    scores = {
      k: over_examples(f, predictions, query.targets, query.mask)
      for k, f in metrics.items()
    }
    return scores, real(query).any()

  everywhere = NamedSharding(mesh, P())
  over_tasks = NamedSharding(mesh, P(TASKS))

  def each(
    fn: Callable, shared: int, out_shardings: NamedSharding
  ) -> Callable[..., Any]:
    """Maps over tasks, with arguments before them that all tasks share."""
    axes = [None] * shared + [0, 0]
    return jax.jit(
      jax.shard_map(
        jax.vmap(fn, axes),
        mesh=mesh,
        in_specs=tuple(P() if axis is None else P(TASKS) for axis in axes),
        out_specs=P(TASKS),
        check_vma=False,
      ),
      out_shardings=out_shardings,
    )

  # The second program has neither the data nor the number of the tasks in it.
  # So a compilation cache has it for all splits. Whatever carries arrays is an
  # argument, so that no array becomes a constant in a program.
  draw = each(draw_task, 1, over_tasks)
  # Every process gets the values of all tasks.
  score = each(score_task, 3, everywhere)
  task_of, fixed = place(
    (as_partial(task_of), fixed and fixed.carried()), everywhere
  )
  # Whole chunks on every device; the surplus is cut off below.
  size = mesh.size * task_chunk
  padded = -(-num_tasks // size) * size
  # The caller may have made them under another mesh.
  keys = place(evaluation_keys(rng, padded), everywhere)

  def chunks() -> Iterator[tuple[PRNGKey, tuple]]:
    """The keys of the tasks of a chunk, with the data of a stream."""
    parts = keys.reshape(-1, size, *keys.shape[1:])
    if stream is None:
      yield from ((part, ()) for part in parts)
      return
    of_tasks = keys_on_host(jax.vmap(jax.random.split)(keys)[:, 0])
    data = blocks(stream.ahead(of_tasks, range(padded)), (size,))
    yield from (
      (part, (block,)) for part, block in zip(parts, data, strict=True)
    )

  def scores(meta_params: Params, arrays: Any = None) -> dict[str, np.ndarray]:
    if hasattr(meta_params, "meta_params"):
      raise ValueError(
        f"meta_params: a {type(meta_params).__name__} given, must be its "
        "`meta_params`."
      )
    # Training may have used fewer devices.
    meta_params, arrays = place((meta_params, arrays), everywhere)
    found = [
      jax.device_get(
        score(
          meta_params, fixed, arrays, *draw(task_of, *place(chunk, over_tasks))
        )
      )
      for chunk in chunks()
    ]
    values, asked = jax.tree.map(lambda *x: np.concatenate(x), *found)
    empty = np.flatnonzero(~asked[:num_tasks])
    if empty.size:
      raise ValueError(
        f"tasks: {empty.size} of {num_tasks} have no query example (task "
        f"{empty[0]} is the first), and so no score."
      )
    return {k: v[:num_tasks] for k, v in values.items()}

  return under(mesh, scores)


def evaluation_keys(rng: PRNGKey, num_tasks: int) -> PRNGKey:
  """Returns keys `[num_tasks]`, one for each evaluation task.

  ::

    key_i = fold_in(fold_in(rng, TAG), i)

  No trainer folds `TAG` into a key. So training and evaluation have no task in
  common, even if both get the same key, or if one key was split from the other.
  Without the tag they could: `split(key)[0]` equals `fold_in(key, 0)`, so the
  task key split from `fold_in(rng, i)` would be that of the first task in step
  i of `meta_trainer`.
  """
  tagged = jax.random.fold_in(rng, TAG)
  return jax.vmap(jax.random.fold_in, (None, 0))(tagged, jnp.arange(num_tasks))


def solve(
  learner: MetaLearner,
  meta_params: Params,
  support: Batch,
  inputs: Any,
  rng: PRNGKey,
  *,
  transductive: bool = True,
  mask: Array | None = None,
) -> Any:
  """Adapts to the support of a task and predicts inputs `[n, ...]`.

  Args:
    learner: the meta-learner.
    meta_params: its meta-parameters.
    support: the support of the task.
    inputs: the inputs of the queries.
    rng: the key of the adaptation.
    transductive: whether all inputs are predicted together, or each alone with
      the support inputs (see `evaluate`).
    mask: `[n]`, True for real inputs; None: all are real.

  Returns:
    The predictions `[n, ...]`.
  """
  task_params = learner.adapt(meta_params, support, rng)
  predict = learner.predict

  def ask(inputs: Any, mask: Array | None) -> Any:
    if mask is None:
      return predict(task_params, inputs)
    if not takes_mask(predict):
      raise ValueError(
        "learner.predict: takes no `mask`, which batches of these tasks have."
      )
    return predict(task_params, inputs, mask=mask)

  if transductive:
    return ask(inputs, mask)

  def predict_alone(x: Any) -> Any:
    company = jax.tree.map(
      lambda others, own: jnp.concatenate([others, own[None]]),
      support.inputs,
      x,
    )
    own = None
    if support.mask is not None:
      own = jnp.append(support.mask, True)
    found = ask(company, own)
    # The joint distribution of one query is its marginal.
    found = getattr(found, "marginals", found)
    return jax.tree.map(lambda x: x[-1], found)

  return jax.lax.map(predict_alone, inputs)
