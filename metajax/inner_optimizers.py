"""What an optimizer of optax is told at a step, and where it is evaluated."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import ScheduleFreeState

from metajax.constant_loops import constant_loops
from metajax.types import Array, Params

Optimizer = Any  # a transformation of optax, or an `optax.MultiSteps`


def start(optimizer: Optimizer, params: Params) -> tuple[Params, Any]:
  """Returns what is trained, and the optimizer's first state.

  That is `params` but for an `optax.lookahead`, which trains a pair.
  """
  state = optimizer.init(params)
  if _states(state, optax.LookaheadState):
    pair = optax.LookaheadParams.init_synced(params)
    return pair, optimizer.init(pair)
  return params, state


def update(
  optimizer: Optimizer,
  grads: Params,
  state: Any,
  trained: Params,
  loss: Array,
  loss_fn: Callable[[Params], Array],
) -> tuple[Params, Any]:
  """Takes a step, and tells the optimizer whatever it asks for.

  Optimizers of optax take further arguments by name: `value` (`polyak_sgd`,
  `reduce_on_plateau`, `momo`), with `grad` and `value_fn` those that search
  along a line (`lbfgs`), `obj_fn` (`sophia`) and `grad_fn` (`sam`). They are
  given those that they accept. What is found by a search along a line is a
  constant of the derivative.

  Args:
    optimizer: any optimizer of optax.
    grads: gradients of the loss at `gradient_params(trained)`.
    state: the optimizer's state.
    trained: what `start` or the last `update` has returned.
    loss: the loss there.
    loss_fn: `params -> scalar`, the loss of this step's examples.

  Returns:
    What is trained after the step, and the optimizer's new state.
  """
  if isinstance(optimizer, optax.MultiSteps):
    optimizer = optimizer.gradient_transformation()
  optimizer = optax.with_extra_args_support(optimizer)

  searches = []

  # A line search refuses what its value_fn does not take.
  def value_fn(
    params: Params, *, obj_fn: Any = None, grad_fn: Any = None
  ) -> Array:
    searches.append(True)
    return loss_fn(params)

  told = {
    "value": loss,
    "grad": grads,
    "value_fn": value_fn,
    "obj_fn": loss_fn,
    "grad_fn": lambda params, index: jax.grad(loss_fn)(params),
  }

  def step(state: Any, trained: Params) -> tuple[Params, Any]:
    updates, state = optimizer.update(grads, state, trained, **told)
    return optax.apply_updates(trained, updates), state

  while True:
    try:
      moved = step(state, trained)
      break
    except TypeError as error:  # As `sam` has one by name, and no others.
      refused = [n for n in told if f"keyword argument '{n}'" in str(error)]
      if not refused:
        raise
      del told[refused[0]]
  return constant_loops(step)(state, trained) if searches else moved


def gradient_params(trained: Params) -> Params:
  """Returns the parameters at which gradients are taken."""
  if isinstance(trained, optax.LookaheadParams):
    return trained.fast
  return trained


def evaluation_params(trained: Params, state: Any) -> Params:
  """Returns the parameters to be evaluated.

  They are those that are trained, but for the schedule-free optimizers, which
  evaluate at an average of their steps, and `optax.lookahead`, which does so
  at its slow parameters.

  Args:
    trained: what `start` or `update` has returned.
    state: the optimizer's state, which may hold the state of a schedule-free
      one anywhere (in a `chain`, `masked` or `partition`).
  """
  if isinstance(trained, optax.LookaheadParams):
    return trained.slow
  for found in _states(state, ScheduleFreeState):

    def average(z: Any, y: Array, b1: Array = found.b1) -> Array:
      if isinstance(z, optax.MaskedNode):
        return y
      return ((y - (1 - b1) * z) / b1).astype(y.dtype)

    trained = jax.tree.map(
      average,
      found.z,
      trained,
      is_leaf=lambda z: isinstance(z, optax.MaskedNode),
    )
  return trained


def _states(state: Any, kind: type) -> list:
  leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
  return [leaf for leaf in leaves if isinstance(leaf, kind)]
