"""Meta-training of policy learners: TRPO, ProMP or any optax optimizer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.numerics import check_counts, check_key, check_kind, check_number
from metajax.policies.protocol import PolicyLearner
from metajax.policies.trust_region import (
  TrustRegion,
  check_trust_region,
  trust_region_step,
)
from metajax.tasks.playable import PlayableTasks, check_playable
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  all_finite,
  choose,
  first_state,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import Array, Metrics, PRNGKey


class KLPenalty(NamedTuple):
  """ProMP's penalty, `weight * drift`, whose weight follows the drift.

  After a step, the weight is halved if the drift is below target / 1.5, and
  doubled if it is above 1.5 target. It stays at least `smallest`: after many
  halvings it could not return in time.

  Attributes:
    weight: the first weight, at least `smallest`.
    target: the target of `PolicyLearner.drift`, in nats per step, above 0.
    smallest: the smallest weight, above 0.
    adaptive: whether the weight changes.

  References:
    Schulman et al., `Proximal Policy Optimization Algorithms
    <https://arxiv.org/abs/1707.06347>`_, 2017, section 4.
    Rothfuss et al., `ProMP: Proximal Meta-Policy Search
    <https://arxiv.org/abs/1810.06784>`_, 2019, equation 13.
  """

  weight: float = 5e-4
  target: float = 0.01
  smallest: float = 1e-4
  adaptive: bool = True

  def next_weight(self, weight: Array, drift: Array) -> Array:
    """Returns the weight after a step that ended with the given drift."""
    if not self.adaptive:
      return weight
    factor = jnp.where(drift < self.target / 1.5, 0.5, 1.0)
    weight = weight * jnp.where(drift > self.target * 1.5, 2.0, factor)
    return jnp.maximum(weight, self.smallest)


class Penalized(NamedTuple):
  """The state of an optimizer beside that of a penalty.

  Attributes:
    optimizer: the state of the optimizer.
    weight: the weight of the penalty.
  """

  optimizer: optax.OptState
  weight: Array


def policy_trainer(
  learner: PolicyLearner,
  tasks: PlayableTasks,
  optimizer: optax.GradientTransformation | TrustRegion,
  *,
  meta_batch: int,
  rng: PRNGKey,
  epochs: int = 1,
  penalty: KLPenalty | None = None,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer that draws and plays new tasks in every step.

  The devices of the mesh share the tasks. The tasks, and what happens in them,
  do not depend on their number.

  Args:
    learner: the learner.
    tasks: the tasks to draw. Their episodes are those of the tasks with which
      the learner was built, and as long.
    optimizer: an optax optimizer, or a `TrustRegion` for TRPO.
    meta_batch: tasks of a step, at least 1.
    rng: the key of all tasks and actions.
    epochs: updates on the experience of a step, at least 1. More than 1 need a
      learner with a clipped outer surrogate, and are not for TRPO.
    penalty: ProMP's penalty of the policies before adaptation. Not for TRPO.
    mesh: a mesh with the axis "tasks". If None, it is `task_mesh(meta_batch)`.

  Returns:
    A `Trainer`. Its metrics are those of the learner's `outer`
    before the last update of a step; with a penalty, also "drift" there and
    "penalty_weight", the weight of the step.

  Raises:
    ValueError: if a number is out of its range, for several epochs or a
      penalty of TRPO, or if the meta-batch is not a multiple of the number of
      devices.
  """
  check_counts(meta_batch=meta_batch, epochs=epochs)
  check_playable(tasks)
  if not isinstance(learner, PolicyLearner):
    raise ValueError(
      f"learner: {type(learner).__name__} given, must be a PolicyLearner, such "
      "as policy_learner(...)."
    )
  check_key(rng)
  by_region = isinstance(optimizer, TrustRegion)
  if by_region:
    check_trust_region(optimizer)
    if epochs > 1:
      raise ValueError(f"epochs={epochs}: TRPO takes one step; give 1.")
    if penalty is not None:
      raise ValueError(
        f"penalty={penalty}: TRPO bounds the divergence itself; give None."
      )
  if penalty is not None:
    check_kind("penalty", penalty, KLPenalty)
    check_number("smallest", penalty.smallest, above=0)
    check_number("weight", penalty.weight, at_least=penalty.smallest)
    check_number("target", penalty.target, above=0)
  transform: Any = optax.identity() if by_region else optimizer
  mesh = task_mesh(meta_batch) if mesh is None else mesh
  if meta_batch % mesh.size:
    raise ValueError(
      f"meta_batch={meta_batch}: must be a multiple of {mesh.size} devices."
    )
  replicated = NamedSharding(mesh, P())
  collect = learner.collect
  if mesh.size > 1:
    # XLA would not split the baselines' Cholesky factors by itself. The means
    # over tasks in `outer`, `fisher` and `drift` it does.
    collect = jax.shard_map(
      collect,
      mesh=mesh,
      in_specs=(P(), P(TASKS), P(TASKS)),
      out_specs=P(TASKS),
      check_vma=False,
    )

  def step(state: TrainState, rng: PRNGKey) -> tuple[TrainState, Metrics]:
    task_key, play_key = jax.random.split(jax.random.fold_in(rng, state.step))
    drawn = jax.vmap(tasks.draw)(jax.random.split(task_key, meta_batch))
    keys = jax.random.split(play_key, meta_batch)
    experience = collect(state.meta_params, drawn, keys)
    if by_region:
      return _by_region(learner, optimizer, state, experience)
    first, weight = state.step, None
    inner = state
    if penalty is not None:
      inner = state._replace(opt_state=state.opt_state.optimizer)
      weight = state.opt_state.weight

    def update(inner: TrainState, _: None) -> tuple[TrainState, Metrics]:
      def loss(params: Any) -> tuple[Any, Metrics]:
        value, _, metrics = learner.outer(params, experience)
        if weight is not None:
          drift = learner.drift(params, experience)
          value = value + weight * drift
          metrics |= {"drift": drift, "penalty_weight": weight}
        return value, metrics

      grads, metrics = jax.grad(loss, has_aux=True)(inner.meta_params)
      metrics["gradient_norm"] = optax.tree.norm(grads)
      return next_state(transform, inner, grads, metrics["loss"]), metrics

    inner, metrics = jax.lax.scan(update, inner, None, length=epochs)
    # If one update was not finite, the step keeps none of its updates.
    every = inner.step - first == epochs
    if penalty is not None and weight is not None:
      drift = learner.drift(inner.meta_params, experience)
      weight = penalty.next_weight(weight, drift)
      inner = inner._replace(opt_state=Penalized(inner.opt_state, weight))
    new = choose(every, inner._replace(step=first + 1), state)
    return new, {name: x[-1] for name, x in metrics.items()}

  def replicated_step(
    state: TrainState, rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    return jax.lax.with_sharding_constraint(step(state, rng), replicated)

  @functools.partial(jax.jit, out_shardings=replicated)
  def init(rng: PRNGKey) -> TrainState:
    state = first_state(transform, learner.init(rng))
    if penalty is None:
      return state
    weight = jnp.float32(penalty.weight)
    return state._replace(opt_state=Penalized(state.opt_state, weight))

  rng = place(rng, replicated)
  return trainer_on(mesh, init, mean_over_steps(replicated_step, rng))


def _by_region(
  learner: PolicyLearner,
  region: TrustRegion,
  state: TrainState,
  experience: Any,
) -> tuple[TrainState, Metrics]:
  params = state.meta_params
  found, metrics = trust_region_step(
    lambda params: learner.outer(params, experience),
    params,
    region,
    fisher=learner.fisher(params, experience),
  )
  new = state._replace(step=state.step + 1, meta_params=found)
  return choose(all_finite((found, metrics)), new, state), metrics
