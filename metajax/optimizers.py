"""What optax's optimizers ask for beside the gradient, and where they are."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.types import Array, Params


def update(
  optimizer: optax.GradientTransformation,
  grads: Params,
  opt_state: optax.OptState,
  params: Params,
  *,
  value: Array | None = None,
  at: Callable[[Params], tuple[Params, Array]] | None = None,
) -> tuple[Params, optax.OptState]:
  """Asks any of optax's optimizers for its updates.

  An optimizer is given what it takes of these: `value` and `grad`, of this
  step; `value_fn` and `obj_fn`, the value of this step at other parameters,
  whose derivative is the gradient that `at` returns; and `grad_fn`, that
  gradient itself.

  Args:
    optimizer: a transformation, also one without extra arguments.
    grads: the gradient at `params`.
    opt_state: the optimizer's state.
    params: the parameters.
    value: the loss at `params`; None: there is none.
    at: `params -> (grads, value)`, the same step at other parameters; it is
      traced where the optimizer calls it only. None: cannot be had.

  Returns:
    `(updates, opt_state)`.
  """
  extra: dict[str, Any] = {"grad": grads}
  if value is not None:
    extra["value"] = value
  if at is not None:
    extra["grad_fn"] = lambda params, _: at(params)[0]
  if at is not None and value is not None:
    differentiable = _with_gradient(at)

    # A line search hands what it does not know on to this function, and raises
    # where that does not take it.
    def value_fn(
      params: Params, obj_fn: Any = None, grad_fn: Any = None
    ) -> Array:
      del obj_fn, grad_fn
      return differentiable(params)

    extra |= {"value_fn": value_fn, "obj_fn": differentiable}
  known = inspect.signature(optimizer.update).parameters
  if all(p.kind is not p.VAR_KEYWORD for p in known.values()):
    extra = {name: x for name, x in extra.items() if name in known}
  return optimizer.update(grads, opt_state, params, **extra)


def evaluation_params(opt_state: optax.OptState, params: Params) -> Params:
  """Returns the parameters to evaluate, where the optimizer trains at others.

  Those of `optax.contrib.schedule_free` are averages, and those of
  `optax.contrib.sam` are those before its adversarial steps. All other
  optimizers evaluate the parameters that they train.

  Args:
    opt_state: the optimizer's state, in which those of other transformations
      may be nested.
    params: the parameters that it trains.
  """
  for state in jax.tree.leaves(opt_state, is_leaf=_moves_elsewhere):
    if isinstance(state, optax.contrib.ScheduleFreeState):

      def average(z: Array, y: Array, b1: Array = state.b1) -> Array:
        b1 = _like(b1, z)
        return (y - (1 - b1) * z) / b1

      params = _map_present(average, state.z, params)
    elif isinstance(state, optax.contrib.SAMState) and state.cache is not None:

      def start(
        kept: Array, now: Array, steps: Array = state.steps_since_sync
      ) -> Array:
        return jnp.where(_like(steps, now) > 0, kept, now)

      params = _map_present(start, state.cache, params)
  return params


def _like(numbers: Array, x: Array) -> Array:
  """Lets a number, or one for each seed, meet the axes of a parameter."""
  return numbers.reshape(numbers.shape + (1,) * (x.ndim - numbers.ndim))


def _moves_elsewhere(x: Any) -> bool:
  kinds = (optax.contrib.ScheduleFreeState, optax.contrib.SAMState)
  return isinstance(x, kinds)


def _map_present(fn: Callable[..., Any], own: Params, params: Params) -> Params:
  """Maps over the parameters that are an optimizer's own, and keeps others."""

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
