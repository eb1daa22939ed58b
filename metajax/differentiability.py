"""Says which optimizers have derivatives that are not finite, or not exact."""

import functools
import re
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun

from metajax import optimizers
from metajax.types import Array, Params

_STEPS = 6  # By then `radam` has had its step that is NaN at any gradient.
_SEARCH = re.compile(r"\bwhile\[")
# Operations whose derivatives may not be finite.
_RISKY = re.compile(r"\b(div|sqrt|rsqrt|cbrt|pow|log|atan2|while)\b")


def watch(
  optimizer: optax.GradientTransformation, params: Params
) -> Callable[[Params], Params]:
  """Builds a function that warns if an optimizer should not be differentiated.

  Args:
    optimizer: any optimizer of optax.
    params: the parameters that it trains, of which the shapes are looked at.

  Returns:
    `grads -> grads`, for the gradients on their way to the optimizer. It warns
    when it is differentiated. Until then the optimizer is not tried, and
    nothing ever enters the program. One that closes over traced values (a
    learned step size) cannot be tried, and nothing is said of it.
  """
  if _holds_tracer(optimizer):
    return lambda grads: grads
  # Not the parameters themselves, which would outlive their trace.
  shapes = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params
  )

  @functools.cache
  def warn() -> None:
    is_64_bit = jnp.result_type(float) == jnp.float64

    def find() -> str | None:
      with jax.enable_x64(is_64_bit):
        return find_fault(optimizer, shapes)

    # A thread of its own has neither the mesh nor the traces of this one.
    with ThreadPoolExecutor(1) as apart:
      fault = apart.submit(find).result()
    if fault:
      warnings.warn(f"The inner optimizer {fault}", stacklevel=2)

  @jax.custom_jvp
  def watched(grads: Params) -> Params:
    return grads

  @watched.defjvp
  def rule(primals: tuple, tangents: tuple) -> tuple:
    warn()
    return primals[0], tangents[0]

  del rule
  return watched


def find_fault(
  optimizer: optax.GradientTransformation, params: Params
) -> str | None:
  """Tries an optimizer's derivatives on a few numbers.

  It takes six steps, once at ordinary gradients and once at zero.

  Args:
    optimizer: any optimizer of optax that closes over no traced values.
    params: parameters that it can train, or their shapes.

  Returns:
    What is wrong, and what to do, in one line; None if nothing is.
  """

  def adapted(params: Params, scale: Array) -> Array:
    def loss_fn(params: Params) -> Array:
      return scale * _total(jax.tree.map(jnp.sin, params))

    def step(carry: tuple, _: None) -> tuple:
      params, state = carry
      loss, grads = jax.value_and_grad(loss_fn)(params)
      updates, state = optimizers.update(
        optimizer, grads, state, params, value=loss, value_fn=loss_fn
      )
      return (optax.apply_updates(params, updates), state), None

    carry, _ = step((params, optimizers.init(optimizer, params)), None)
    (params, state), _ = jax.lax.scan(step, carry, None, length=_STEPS - 1)
    return _total(optimizers.evaluation_params(state, params))

  # Few parameters, unless the optimizer has a mask of these.
  for like in ({"w": np.zeros((2, 2)), "b": np.zeros(2)}, params):
    try:
      with jax.ensure_compile_time_eval():
        small = jax.tree.map(lambda p: _numbers(p.shape), like)
        derivatives = jax.grad(adapted, (0, 1))
        traced = jax.make_jaxpr(derivatives)(small, 1.0)
        if not _RISKY.search(str(traced)):
          return None
        run = jax.jit(jaxpr_as_fun(traced))
        finite = [
          all(np.isfinite(x).all() for x in run(*jax.tree.leaves(small), scale))
          for scale in (1.0, 0.0)
        ]
    except (TypeError, ValueError, AttributeError, KeyError):
      continue  # The mask does not fit these.
    return _fault(str(traced), *finite)
  return None


def _holds_tracer(value: Any) -> bool:
  """Whether a function, or a tree of them, closes over a traced value."""
  if isinstance(value, jax.core.Tracer):
    return True
  if isinstance(value, functools.partial):
    parts = [value.func, value.args, value.keywords]
  elif isinstance(value, types.FunctionType):
    parts = [cell.cell_contents for cell in value.__closure__ or ()]
  elif isinstance(value, types.MethodType):
    parts = list(vars(value.__self__).values())
  elif isinstance(value, dict):
    parts = list(value.values())
  else:
    parts = list(value) if isinstance(value, list | tuple) else []
  return any(map(_holds_tracer, parts))


def _fault(program: str, ordinary: bool, zero: bool) -> str | None:
  if not ordinary:
    return (
      "has derivatives that are NaN at any gradient: give another one "
      "(docs/optimizers.md), or first_order=True."
    )
  if not zero:
    return (
      "has derivatives that are NaN where gradients are zero: build it with "
      "eps_root=1e-8 if it has that, else give another one "
      "(docs/optimizers.md), or first_order=True."
    )
  if _SEARCH.search(program):
    return (
      "searches for a step size, which is a constant of its derivatives: give "
      "another one if they must be exact (docs/optimizers.md)."
    )
  return None


def _numbers(shape: tuple[int, ...]) -> Array:
  shape = tuple(min(size, 2) for size in shape)
  return 0.5 + jnp.arange(np.prod(shape, dtype=int)).reshape(shape) / 4


def _total(tree: Any) -> Array:
  return sum((x.sum() for x in jax.tree.leaves(tree)), jnp.zeros(()))
