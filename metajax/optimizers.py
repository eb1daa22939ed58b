"""What optax's optimizers ask for beside the gradient, and where they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import SAMState, ScheduleFreeState

from metajax.constant_loops import constant_loops
from metajax.types import Array, Params


class SlowState(NamedTuple):
  """The state of an optimizer with `optax.lookahead` in it.

  Attributes:
    inner: its own state.
    slow: the slow parameters; the fast ones are those that are trained.
  """

  inner: optax.OptState
  slow: Params


def init(
  optimizer: optax.GradientTransformation, params: Params
) -> optax.OptState:
  """Returns the first state of any of optax's optimizers."""
  state = optimizer.init(params)
  lookahead = _states(state, optax.LookaheadState)
  return SlowState(state, params) if lookahead else state


def update(
  optimizer: optax.GradientTransformation,
  grads: Params,
  opt_state: optax.OptState,
  params: Params,
  *,
  value: Array | None = None,
  value_fn: Callable[[Params], Array] | None = None,
  differentiable: bool = False,
) -> tuple[Params, optax.OptState]:
  """Asks any of optax's optimizers for its updates.

  An optimizer is given what it takes of these: `value` and `grad`, of this
  step; `value_fn` and `obj_fn`, the value of this step at other parameters;
  and `grad_fn`, the gradient there.

  Args:
    optimizer: a transformation, also one without extra arguments.
    grads: the gradient at `params`.
    opt_state: the optimizer's state, from `init`.
    params: the parameters.
    value: the loss at `params`; None: there is none.
    value_fn: `params -> value`, the same step at other parameters; it is
      traced where the optimizer calls it only. None: cannot be had.
    differentiable: whether the result can be differentiated also where the
      optimizer searches along a line; what it finds is a constant then, and
      the search is traced twice.

  Returns:
    `(updates, opt_state)`.
  """
  if isinstance(optimizer, optax.MultiSteps):
    optimizer = optimizer.gradient_transformation()
  optimizer = optax.with_extra_args_support(optimizer)
  searches = []

  # A line search hands what it does not know on to this function, and raises
  # where that does not take it.
  def searched(
    params: Params, obj_fn: Any = None, grad_fn: Any = None
  ) -> Array:
    del obj_fn, grad_fn
    searches.append(True)
    assert value_fn is not None
    return value_fn(params)

  told: dict[str, Any] = {"grad": grads}
  if value is not None:
    told["value"] = value
  if value_fn is not None:
    slope = jax.grad(value_fn)
    told["grad_fn"] = lambda params, _: slope(params)
    if value is not None:
      told |= {"value_fn": searched, "obj_fn": value_fn}

  def step(opt_state: Any, params: Params) -> tuple[Params, optax.OptState]:
    if not isinstance(opt_state, SlowState):
      return optimizer.update(grads, opt_state, params, **told)
    pair = optax.LookaheadParams(params, opt_state.slow)
    updates, inner = optimizer.update(grads, opt_state.inner, pair, **told)
    slow = optax.apply_updates(opt_state.slow, updates.slow)
    return updates.fast, SlowState(inner, slow)

  while True:
    try:
      found = step(opt_state, params)
      break
    except TypeError as error:  # `sam` takes `grad_fn` by name, and no others.
      refused = [n for n in told if f"keyword argument '{n}'" in str(error)]
      if not refused or "unexpected" not in str(error):
        raise
      del told[refused[0]]
  if differentiable and searches:
    return constant_loops(step)(opt_state, params)
  return found


def evaluation_params(opt_state: optax.OptState, params: Params) -> Params:
  """Returns the parameters to evaluate, where the optimizer trains at others.

  They are the averages of `optax.contrib.schedule_free`, the slow parameters of
  `optax.lookahead`, and those before the adversarial steps of
  `optax.contrib.sam`. All other optimizers evaluate what they train.

  Args:
    opt_state: the optimizer's state, in which those of other transformations
      may be nested.
    params: the parameters that it trains.
  """
  if isinstance(opt_state, SlowState):
    return opt_state.slow
  for free in _states(opt_state, ScheduleFreeState):

    def average(z: Array, y: Array, b1: Array = free.b1) -> Array:
      b1 = _like(b1, z)
      return (y - (1 - b1) * z) / b1

    params = _map_own(average, free.z, params)
  for sam in _states(opt_state, SAMState):
    away = sam.steps_since_sync > 0

    def before(kept: Array, now: Array, away: Array = away) -> Array:
      return jnp.where(_like(away, now), kept, now)

    if sam.cache is not None:
      params = _map_own(before, sam.cache, params)
  return params


def last_step_size(
  rate: optax.ScalarOrSchedule, opt_state: optax.OptState
) -> float:
  """Returns the step size of the last update, or of the first to come.

  A schedule counts updates, in the optimizer's state: what was skipped or done
  in another session needs no care.

  Args:
    rate: the step size that the optimizer was made with.
    opt_state: the optimizer's state. Of several seeds it is a mean.
  """
  counts = [s.count for s in _states(opt_state, optax.ScaleByScheduleState)]
  last = np.maximum(np.asarray(counts[0] if counts else 0) - 1, 0)
  return float(np.mean(rate(last) if callable(rate) else rate))


def _states(opt_state: optax.OptState, kind: type) -> list[Any]:
  leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _like(numbers: Array, x: Array) -> Array:
  """Lets a number, or one for each seed, meet the axes of a parameter."""
  return numbers.reshape(numbers.shape + (1,) * (x.ndim - numbers.ndim))


def _map_own(fn: Callable[..., Any], own: Params, params: Params) -> Params:
  """Maps over the parameters that an optimizer has, and keeps the others."""

  def absent(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)

  return jax.tree.map(
    lambda x, y: y if absent(x) else fn(x, y).astype(y.dtype),
    own,
    params,
    is_leaf=absent,
  )
