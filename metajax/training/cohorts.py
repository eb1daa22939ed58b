"""Trains many models, one cohort of parallel models after the other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.numerics import check_counts, check_key, wide
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  all_finite,
  choose,
  mean_over_steps,
  trainer_on,
)
from metajax.types import Array, Metrics, Params, PRNGKey

TrainModel = Callable[[PRNGKey, Params, Params, Array], tuple[Params, Metrics]]


def cohort_trainer(
  init_model: Callable[[PRNGKey], Params],
  train_model: TrainModel,
  num_models: int,
  cohort: int,
  *,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer whose step is the whole training of a cohort of models.

  The training of a cohort is vmapped and split over the devices.
  `training.loop.fit` therefore shows the progress in cohorts, writes
  checkpoints between them, and can resume. Model i is initialised and trained
  with the key `fold_in(rng, i)`.

  Args:
    init_model: `(rng) -> params`.
    train_model: `(rng, params, mean, count) -> (params, metrics)`, which trains
      one model. `mean` is the mean of the `count` models of earlier cohorts. It
      is zero for the first cohort.
    num_models: number of models.
    cohort: number of models of a cohort. It must divide `num_models`.
    rng: the key of all models.
    mesh: a mesh with the axis "tasks", over which a cohort is split. If None,
      it is `task_mesh(cohort)`.

  Returns:
    A `Trainer` of `num_models / cohort` steps. Its meta-parameters are the
    stack of models `[num_models, ...]`, in which untrained models are zero. It
    stops before a cohort with a model or a "loss" that is not finite.

  Raises:
    ValueError: if `num_models` is not a multiple of `cohort`, or if `cohort` is
      not a multiple of the number of devices.
  """
  if mesh is None:
    mesh = task_mesh(cohort, name="cohort")
  if cohort < 1 or num_models % cohort:
    raise ValueError(
      f"cohort={cohort}: must divide the number of models, {num_models}."
    )
  if cohort % mesh.size:
    raise ValueError(
      f"cohort={cohort}: must be a multiple of {mesh.size} devices."
    )
  check_key(rng)
  check_counts(num_models=num_models, cohort=cohort)

  def train_one(rng, mean, count):
    return train_model(rng, init_model(rng), mean, count)

  train_cohort = jax.shard_map(
    jax.vmap(train_one, in_axes=(0, None, None)),
    mesh=mesh,
    in_specs=(P(TASKS), P(), P()),
    out_specs=P(TASKS),
    check_vma=False,
  )
  replicated = NamedSharding(mesh, P())
  rng = place(rng, replicated)

  def init(rng: PRNGKey) -> TrainState:
    stack = jax.tree.map(
      lambda s: jnp.zeros((num_models, *s.shape), s.dtype),
      jax.eval_shape(init_model, rng),
    )
    return place(TrainState(jnp.int32(0), stack, ()), replicated)

  def train_next(state, rng):
    step, stack, _ = state
    start = step * cohort
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      rng, start + jnp.arange(cohort)
    )
    # Untrained models are zero and do not change the sum.
    mean = jax.tree.map(
      lambda x: (wide(x).sum(0) / jnp.maximum(start, 1)).astype(x.dtype), stack
    )
    models, metrics = train_cohort(keys, mean, start)
    stack = jax.tree.map(
      lambda s, m: jax.lax.dynamic_update_slice_in_dim(s, m, start, 0),
      stack,
      models,
    )
    means = jax.tree.map(lambda x: wide(x).mean(), metrics)
    new = TrainState(step + 1, stack, ())
    return choose(all_finite((models, metrics.get("loss"))), new, state), means

  return trainer_on(mesh, init, mean_over_steps(train_next, rng))
