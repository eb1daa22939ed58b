"""What optax's optimizers ask for beside the gradient, and where they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
  at: Callable[[Params], tuple[Params, Array]] | None = None,
  value_fn: Callable[[Params], Array] | None = None,
) -> tuple[Params, optax.OptState]:
  """Asks any of optax's optimizers for its updates.

  An optimizer is given what it takes of these: `value` and `grad`, of this
  step; `value_fn` and `obj_fn`, the value of this step at other parameters,
  whose derivative is the gradient that `at` returns; and `grad_fn`, that
  gradient itself.

  Args:
    optimizer: a transformation, also one without extra arguments.
    grads: the gradient at `params`.
    opt_state: the optimizer's state, from `init`.
    params: the parameters.
    value: the loss at `params`; None: there is none.
    at: `params -> (grads, value)`, the same step at other parameters; it is
      traced where the optimizer calls it only. None: cannot be had.
    value_fn: `params -> value` in its place, where the gradient is its
      derivative. The updates can then be differentiated; what a line search
      finds is a constant of that derivative.

  Returns:
    `(updates, opt_state)`.
  """
  told: dict[str, Any] = {"grad": grads}
  if value is not None:
    told["value"] = value
  objective, searches = value_fn, []
  if at is not None:
    told["grad_fn"] = lambda params, _: at(params)[0]
    if value is not None:
      objective = _with_gradient(at)
  elif value_fn is not None:
    told["grad_fn"] = lambda params, _: jax.grad(value_fn)(params)
  if objective is not None:
    # A line search hands what it does not know on to this function, and raises
    # where that does not take it.
    def search(
      params: Params, obj_fn: Any = None, grad_fn: Any = None
    ) -> Array:
      del obj_fn, grad_fn
      searches.append(True)
      return objective(params)

    told |= {"value_fn": search, "obj_fn": objective}

  def tell(
    opt_state: optax.OptState, params: Params
  ) -> tuple[Params, optax.OptState]:
    return _tell(optimizer, grads, opt_state, params, told)

  slow = isinstance(opt_state, SlowState)
  inner = opt_state.inner if slow else opt_state
  pair = optax.LookaheadParams(params, opt_state.slow) if slow else params
  updates, new = tell(inner, pair)
  if searches and value_fn is not None:
    updates, new = constant_loops(tell)(inner, pair)
  if not slow:
    return updates, new
  moved = optax.apply_updates(opt_state.slow, updates.slow)
  return updates.fast, SlowState(new, moved)


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


def _tell(
  optimizer: optax.GradientTransformation,
  grads: Params,
  opt_state: optax.OptState,
  params: Params,
  told: dict[str, Any],
) -> tuple[Params, optax.OptState]:
  """Calls an optimizer with what it accepts."""
  if isinstance(optimizer, optax.MultiSteps):
    optimizer = optimizer.gradient_transformation()
  optimizer = optax.with_extra_args_support(optimizer)
  while True:
    try:
      return optimizer.update(grads, opt_state, params, **told)
    except TypeError as error:  # `sam` takes `grad_fn` by name, and no others.
      refused = [n for n in told if f"keyword argument '{n}'" in str(error)]
      if not refused or "unexpected" not in str(error):
        raise
      told = {n: x for n, x in told.items() if n not in refused}


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


def _with_gradient(
  at: Callable[[Params], tuple[Params, Array]],
) -> Callable[[Params], Array]:
  """Returns `params -> value`, whose derivative is the gradient of `at`.

  What a learner returns need not be the derivative of its loss, and that of
  `pmean` would be another.
  """

  @jax.custom_vjp
  def value(params):
    return at(params)[1]

  def forward(params):
    grads, found = at(params)
    return found, (grads, params)

  def backward(kept, cotangent):
    grads, params = kept
    return (
      jax.tree.map(lambda g, p: (cotangent * g).astype(p.dtype), grads, params),
    )

  value.defvjp(forward, backward)
  return value
