"""Calls any optax optimizer with the arguments that it takes."""

import warnings
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
  """The state of an optimizer that contains `optax.lookahead`.

  Attributes:
    inner: the state of the optimizer.
    slow: the slow parameters. The fast parameters are those that are trained.
  """

  inner: optax.OptState
  slow: Params


def init(
  optimizer: optax.GradientTransformation, params: Params
) -> optax.OptState:
  """Returns the first state of any optax optimizer.

  Raises:
    ValueError: for something else, such as a step size.
  """
  if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
    raise ValueError(
      f"optimizer={optimizer!r}: must be an optimizer of optax, such as "
      "optax.sgd(0.1)."
    )
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
  """Computes the updates of any optax optimizer.

  The optimizer receives those of these extra arguments that it takes: `value`
  and `grad` of this step; `value_fn` and `obj_fn`, the value of this step at
  other parameters; `grad_fn`, the gradient there.

  Args:
    optimizer: a transformation, with or without extra arguments.
    grads: the gradient at `params`.
    opt_state: the optimizer's state, from `init`.
    params: the parameters.
    value: the loss at `params`; None: unknown.
    value_fn: `params -> value`, the loss of this step at other parameters. It
      is traced only if the optimizer calls it. None: unavailable.
    differentiable: make the result differentiable even if the optimizer does a
      line search. The step size that it finds is then a constant. The search is
      traced twice.

  Returns:
    `(updates, opt_state)`.

  Warns:
    UserWarning: if the optimizer returns some gradients as they are, as
      `optax.masked` does where its mask is False.
  """
  if isinstance(optimizer, optax.MultiSteps):
    optimizer = optimizer.gradient_transformation()
  optimizer = optax.with_extra_args_support(optimizer)
  searches = []

  # A line search passes extra arguments on to this function, and raises an
  # error if the function does not take them.
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
    except TypeError as error:  # `sam` takes `grad_fn` and no other argument.
      refused = [n for n in told if f"keyword argument '{n}'" in str(error)]
      if not refused or "unexpected" not in str(error):
        raise
      del told[refused[0]]
  if differentiable and searches:
    return constant_loops(step)(opt_state, params)
  _warn_of_ascent(grads, found[0])
  return found


def _warn_of_ascent(grads: Params, updates: Params) -> None:
  """Warns if some updates are the gradients, and the loss would rise."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(grads),
    jax.tree.leaves(updates),
    strict=False,
  )
  same = {jax.tree_util.keystr(path): x is y for (path, x), y in pairs}
  if any(same.values()) and not all(same.values()):
    first = next(path for path, is_same in same.items() if is_same)
    warnings.warn(
      f"optimizer: the step adds the gradient itself to {first}, uphill. "
      "optax.masked does so where its mask is False; optax.multi_transform "
      "with optax.set_to_zero() leaves parameters as they are.",
      stacklevel=3,
    )


def evaluation_params(opt_state: optax.OptState, params: Params) -> Params:
  """Returns the parameters to evaluate, which some optimizers do not train.

  These are the averages of `optax.contrib.schedule_free`, the slow parameters
  of `optax.lookahead`, and the parameters before the adversarial steps of
  `optax.contrib.sam`. All other optimizers evaluate what they train.

  Args:
    opt_state: the optimizer's state. States of other transformations may be
      nested in it.
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
  """Returns the step size of the last update; before any, that of the first.

  The optimizer's state counts the updates. So the step size is also right after
  skipped steps and after a restart.

  Args:
    rate: the step size or schedule that the optimizer was made with.
    opt_state: the optimizer's state. If it has an axis of seeds, the result is
      the mean over the seeds.
  """
  counts = [s.count for s in _states(opt_state, optax.ScaleByScheduleState)]
  last = np.maximum(np.asarray(counts[0] if counts else 0) - 1, 0)
  return float(np.mean(rate(last) if callable(rate) else rate))


def _states(opt_state: optax.OptState, kind: type) -> list[Any]:
  leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _like(numbers: Array, x: Array) -> Array:
  """Adds trailing axes to a number, or one for each seed, to broadcast."""
  return numbers.reshape(numbers.shape + (1,) * (x.ndim - numbers.ndim))


def _map_own(fn: Callable[..., Any], own: Params, params: Params) -> Params:
  """Maps over the parameters in the optimizer's state; keeps the others."""

  def absent(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)

  return jax.tree.map(
    lambda x, y: y if absent(x) else fn(x, y).astype(y.dtype),
    own,
    params,
    is_leaf=absent,
  )
