"""Warns of optimizers whose derivatives are not finite, or not exact."""

import gc
import re
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun

from metajax import optimizers
from metajax.types import Array, Params

_STEPS = 6  # Enough to reach the step of `radam` that is always NaN.
_SEARCH = re.compile(r"\bwhile\[")
# Operations whose derivatives may not be finite.
_RISKY = re.compile(r"\b(div|sqrt|rsqrt|cbrt|pow|log|atan2|while)\b")


def watched(
  grads: Params, optimizer: optax.GradientTransformation, params: Params
) -> Params:
  """Returns `grads`, and warns when a bad optimizer is differentiated.

  Nothing happens before that, and the program does not change.

  Args:
    grads: the gradients that the optimizer will receive.
    optimizer: any optimizer of optax.
    params: the parameters that it trains; only their shapes are used.
  """
  if _captures_tracers(optimizer):
    return grads
  # Shapes only: the rule below would keep the parameters beyond their trace.
  shapes = jax.tree.map(jax.typeof, params)

  @jax.custom_jvp
  def same(grads: Params) -> Params:
    return grads

  @same.defjvp
  def rule(primals: tuple, tangents: tuple) -> tuple:
    if fault := find_fault(optimizer, shapes):
      warnings.warn(f"The inner optimizer {fault}", stacklevel=2)
    return primals[0], tangents[0]

  del rule
  return same(grads)


def find_fault(
  optimizer: optax.GradientTransformation, params: Params
) -> str | None:
  """Tests the derivatives of an optimizer on small numbers.

  It takes six steps, once at ordinary gradients and once at zero gradients.

  Args:
    optimizer: any optimizer of optax. An optimizer that captures traced values
      (a learned step size) cannot be tested.
    params: parameters that it can train.

  Returns:
    The fault and its fix in one line; None if there is no fault.
  """
  leaves, tree = jax.tree.flatten(params)
  shapes = [jax.ShapeDtypeStruct(np.shape(p), jnp.float32) for p in leaves]
  config: Any = jax.config
  return _find_fault(optimizer, tree, tuple(shapes), config.jax_enable_x64)


@lru_cache(maxsize=128)
def _find_fault(
  optimizer: optax.GradientTransformation, tree: Any, shapes: tuple, wide: bool
) -> str | None:
  def test() -> str | None:
    with jax.enable_x64(wide):
      return _try(optimizer, tree.unflatten(shapes))

  # A new thread has neither the mesh nor the traces of the caller.
  with ThreadPoolExecutor(1) as apart:
    return apart.submit(test).result()


def _try(optimizer: optax.GradientTransformation, params: Any) -> str | None:
  def adapted(params: Params, scale: Array) -> Array:
    def loss_fn(params: Params) -> Array:
      return scale * _total(jax.tree.map(jnp.sin, params))

    def step(carry: tuple, _: None) -> tuple:
      state, params = carry
      loss, grads = jax.value_and_grad(loss_fn)(params)
      updates, state = optimizers.update(
        optimizer,
        grads,
        state,
        params,
        value=loss,
        value_fn=loss_fn,
        differentiable=True,
      )
      return (state, optax.apply_updates(params, updates)), None

    carry, _ = step((optimizers.init(optimizer, params), params), None)
    carry, _ = jax.lax.scan(step, carry, None, length=_STEPS - 1)
    return _total(optimizers.evaluation_params(*carry))

  # A few parameters, unless the optimizer has a mask for these very ones.
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
      continue
    return _fault(str(traced), *finite)
  return None


def _captures_tracers(optimizer: Any) -> bool:
  """Whether an optimizer captures traced values."""
  found, seen = [optimizer], set()
  while found:
    x = found.pop()
    if isinstance(x, jax.core.Tracer):
      return True
    if id(x) in seen:
      continue
    seen.add(id(x))
    if isinstance(x, types.FunctionType):
      found += [x.__closure__, x.__defaults__]
    elif isinstance(x, tuple | list | dict | types.CellType | partial):
      found += gc.get_referents(x)
  return False


def _fault(program: str, ordinary: bool, zero: bool) -> str | None:
  if not ordinary:
    return (
      "has derivatives that are NaN at any gradient: give another one "
      "(docs/optimizers.md), or first_order=True."
    )
  if not zero:
    return (
      "has derivatives that are NaN where gradients are zero: build it with "
      "eps_root=1e-8 if that helps, else give another one "
      "(docs/optimizers.md), or first_order=True."
    )
  if _SEARCH.search(program):
    return (
      "searches for a step size, which is a constant in derivatives of the "
      "adapted parameters: give another one if they must be exact."
    )
  return None


def _numbers(shape: tuple[int, ...]) -> Array:
  shape = tuple(min(size, 2) for size in shape)
  return 0.5 + jnp.arange(np.prod(shape, dtype=int)).reshape(shape) / 4


def _total(tree: Any) -> Array:
  return sum((x.sum() for x in jax.tree.leaves(tree)), jnp.zeros(()))
