"""Trains outer parameters by an estimator of the gradient of long loops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import optimizers
from metajax.bilevel.estimators import Estimator
from metajax.bilevel.inner import Outer, check_real
from metajax.numerics import check_counts
from metajax.types import Array, PRNGKey


class Descent(NamedTuple):
  """Where the training of outer parameters stands.

  Attributes:
    outer: the outer parameters that the optimizer trains; see
      `optimizers.evaluation_params` for those to evaluate.
    opt_state: the state of the outer optimizer.
    workers: the states of the estimator, `[workers, ...]`.
    step: int32, the number of outer steps taken.
  """

  outer: Outer
  opt_state: optax.OptState
  workers: Any
  step: Array


class Descender(NamedTuple):
  """Functions that train outer parameters.

  Attributes:
    init: `(outer, rng) -> Descent`.
    run: `(descent, rng, num_steps) -> (descent, losses [num_steps])`. A key of
      a step is derived from `rng` and the number of the step, so calls of any
      lengths end alike. `num_steps` is a Python int.
  """

  init: Callable[[Outer, PRNGKey], Descent]
  run: Callable[[Descent, PRNGKey, int], tuple[Descent, Array]]


def descent(
  estimator: Estimator,
  optimizer: optax.GradientTransformation,
  *,
  workers: int = 1,
  horizon: int = 1,
) -> Descender:
  """Builds the descent along the mean estimate of several workers.

  ::

    outer <- outer + optimizer(mean over workers of the estimate of a window)

  Each worker has a loop of its own. Worker w starts as if w horizon / workers
  windows had passed, so its first loop is shorter, and the estimates of a step
  are of early and of late windows.

  Args:
    estimator: an estimator of `metajax.bilevel`.
    optimizer: the outer optimizer.
    workers: the number of workers.
    horizon: the number of windows of a loop, as in the estimator. 1: workers
      start together; also for estimators without state.

  Raises:
    ValueError: if a number is not positive. `init` raises it if `outer` is not
      real, or `optimizer` is none of optax.
  """
  check_counts(workers=workers, horizon=horizon)

  def init(outer: Outer, rng: PRNGKey) -> Descent:
    check_real("outer", outer)
    outer = jax.tree.map(jnp.asarray, outer)
    keys = jax.random.split(rng, workers)
    states = jax.vmap(lambda key: estimator.init(outer, key))(keys)
    if horizon > 1 and hasattr(states, "number"):
      passed = jnp.arange(workers, dtype=jnp.int32) * horizon // workers
      states = states._replace(number=passed)
    opt_state = optimizers.init(optimizer, outer)
    return Descent(outer, opt_state, states, jnp.int32(0))

  def one_step(now: Descent, rng: PRNGKey) -> tuple[Descent, Array]:
    keys = jax.random.split(jax.random.fold_in(rng, now.step), workers)
    grads, losses, states = jax.vmap(
      lambda state, key: estimator.estimate(state, now.outer, key)
    )(now.workers, keys)
    grads = jax.tree.map(lambda x: x.mean(0), grads)
    updates, opt_state = optimizers.update(
      optimizer, grads, now.opt_state, now.outer, value=losses.mean()
    )
    outer = optax.apply_updates(now.outer, updates)
    return Descent(outer, opt_state, states, now.step + 1), losses.mean()

  def run(now: Descent, rng: PRNGKey, num_steps: int) -> tuple[Descent, Array]:
    check_counts(num_steps=num_steps, at_least=0)
    return jax.lax.scan(
      lambda now, _: one_step(now, rng), now, length=num_steps
    )

  return Descender(init, run)
