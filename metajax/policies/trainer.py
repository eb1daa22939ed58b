"""Meta-training of policy learners: TRPO, PPO or any optax optimizer."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.numerics import check_number
from metajax.policies.policy_learner import PolicyLearner
from metajax.policies.trust_region import (
  TrustRegion,
  check_trust_region,
  trust_region_step,
)
from metajax.tasks.playable import PlayableTasks
from metajax.training.mesh import task_mesh
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
from metajax.types import Metrics, PRNGKey


def policy_trainer(
  learner: PolicyLearner,
  tasks: PlayableTasks,
  optimizer: optax.GradientTransformation | TrustRegion,
  *,
  meta_batch: int,
  rng: PRNGKey,
  epochs: int = 1,
) -> Trainer:
  """Builds a trainer that draws and plays new tasks in every step.

  Args:
    learner: the learner.
    tasks: the tasks.
    optimizer: an optax optimizer, or a `TrustRegion` for TRPO.
    meta_batch: tasks of a step, at least 1.
    rng: the key of all tasks and actions.
    epochs: updates on the experience of a step, at least 1. More than 1 need a
      learner with a clipped outer surrogate, and are not for TRPO.

  Returns:
    A `Trainer`, on one device. Its metrics are those of the learner's `outer`
    before the last update of a step.

  Raises:
    ValueError: if a number is out of its range, or for several epochs of TRPO.
  """
  check_number("meta_batch", meta_batch, at_least=1)
  check_number("epochs", epochs, at_least=1)
  by_region = isinstance(optimizer, TrustRegion)
  if by_region:
    check_trust_region(optimizer)
    if epochs > 1:
      raise ValueError(f"epochs={epochs}: TRPO takes one step; give 1.")
  transform: Any = optax.identity() if by_region else optimizer
  mesh = task_mesh(1)
  replicated = NamedSharding(mesh, P())

  def step(state: TrainState, rng: PRNGKey) -> tuple[TrainState, Metrics]:
    task_key, play_key = jax.random.split(jax.random.fold_in(rng, state.step))
    drawn = jax.vmap(tasks.draw)(jax.random.split(task_key, meta_batch))
    experience = learner.collect(state.meta_params, drawn, play_key)
    if by_region:
      return _by_region(learner, optimizer, state, experience)
    first = state.step

    def update(inner: TrainState, _: None) -> tuple[TrainState, Metrics]:
      def loss(params: Any) -> tuple[Any, Metrics]:
        value, _, metrics = learner.outer(params, experience)
        return value, metrics

      grads, metrics = jax.grad(loss, has_aux=True)(inner.meta_params)
      metrics["gradient_norm"] = optax.tree.norm(grads)
      return next_state(transform, inner, grads, metrics["loss"]), metrics

    inner, metrics = jax.lax.scan(update, state, None, length=epochs)
    # If one update was not finite, the step keeps none of its updates.
    every = inner.step - first == epochs
    new = choose(every, inner._replace(step=first + 1), state)
    return new, {name: x[-1] for name, x in metrics.items()}

  @jax.jit
  def init(rng: PRNGKey) -> TrainState:
    return first_state(transform, learner.init(rng))

  rng = place(rng, replicated)
  return trainer_on(mesh, init, mean_over_steps(step, rng))


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
