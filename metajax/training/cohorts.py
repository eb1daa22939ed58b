"""Trains many models, a cohort of them at a time, in parallel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.numerics import wide
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
  """Builds a trainer that trains models from start to end, cohort by cohort.

  A step of this trainer is the whole training of one cohort, vmapped and spread
  over the devices, so `training.loop.fit` shows its progress, writes
  checkpoints between cohorts, and resumes. Model i is made and trained with
  the key `fold_in(rng, i)`.

  Args:
    init_model: `(rng) -> params`.
    train_model: `(rng, params, mean, count) -> (params, metrics)` trains one
      model. It may look at the mean of the `count` models of the cohorts
      before, which is zero at first.
    num_models: how many models.
    cohort: how many train at once; must divide `num_models`.
    rng: the key of all of them.
    mesh: a mesh with the axis "tasks", over which a cohort is spread; None:
      `task_mesh(cohort)`.

  Returns:
    A `Trainer` of `num_models / cohort` steps; its meta-parameters are the
    stack of models `[num_models, ...]`, zero where they are not yet trained. It
    stops before a cohort with a model or a "loss" that is not finite.

  Raises:
    ValueError: if the cohort does not divide the number of models, or the
      devices the cohort.
  """
  mesh = task_mesh(cohort) if mesh is None else mesh
  if cohort < 1 or num_models % cohort:
    raise ValueError(
      f"cohort={cohort}: must divide the number of models, {num_models}."
    )
  if cohort % mesh.size:
    raise ValueError(
      f"cohort={cohort}: must be a multiple of {mesh.size} devices."
    )

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
    # What is not trained yet is zero and adds nothing.
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
