"""Finds custom differentiation rules that need not be derivatives."""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

# Packages whose `custom_jvp` rules are derivatives. The derivative of a root is
# only as good as its solver.
_PACKAGES = tuple(
  os.path.dirname(str(package.__file__)) + os.sep for package in (jax, optax)
)
_INEXACT = ("_custom_root",)
# The one linear solver of JAX that does not iterate.
_DIRECT = os.path.join(_PACKAGES[0], "_src", "lax", "linalg.py")


def first(jaxpr: Jaxpr) -> str | None:
  """Describes the first rule in a program that need not be a derivative.

  These are the rules of `custom_vjp`, `custom_gradient`, `custom_jvp`,
  `custom_root`, `linear_call` and of iterative linear solvers. The `custom_jvp`
  functions of JAX and optax (`relu`, `logaddexp`, ...) have derivatives as
  their rules, so they are skipped. So is `stop_gradient`, which is a constant
  in derivatives of every order.

  Args:
    jaxpr: the traced function. The programs inside it (of `jit`, `scan`,
      `while_loop`, `cond`, `checkpoint`, `shard_map`, ...) are searched too.

  Returns:
    The kind, function and place of the rule, for example "rule of the
    custom_vjp clip at model.py:12"; None if there is no such rule.
  """
  return next(_rules(jaxpr), None)


def _rules(jaxpr: Jaxpr) -> Iterator[str]:
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "custom_vjp_call":
      yield f"rule of the custom_vjp {_source(params['call_jaxpr'])}"
    elif name == "custom_jvp_call" and not _is_derivative(eqn):
      yield f"rule of the custom_jvp {_source(params['call_jaxpr'])}"
    elif name == "custom_linear_solve":
      solve = params["jaxprs"].solve
      if solve.jaxpr.debug_info.func_filename != _DIRECT:
        yield f"rule of custom_linear_solve for {_source(solve)}"
    elif name == "linear_call":
      yield f"rule of the linear_call {_source(params['callee'])}"
    elif name == "call_hi_primitive":  # A custom_vjp of jax_custom_vjp3, say.
      kind = type(params["_prim"]).__name__
      if kind != "CheckpointName":
        yield f"rule of the primitive {kind}"
    for inner in jaxprs_in_params(params):
      yield from _rules(inner)


def _is_derivative(eqn: JaxprEqn) -> bool:
  """Whether JAX or optax defines this `custom_jvp`."""
  info = eqn.params["call_jaxpr"].jaxpr.debug_info
  rule = eqn.params["jvp_jaxpr_fun"].debug_info
  return (
    info.func_name not in _INEXACT
    and (rule.func_filename or "").startswith(_PACKAGES)
    and (info.func_filename or "").startswith(_PACKAGES)
    # A function of JAX may have been given a rule by another package.
    and _is_custom_jvp(info.func_filename, info.func_name)
  )


@functools.cache
def _is_custom_jvp(filename: str, name: str) -> bool:
  return any(
    isinstance(getattr(module, name, None), jax.custom_jvp)
    for module in list(sys.modules.values())
    if getattr(module, "__file__", None) == filename
  )


def _source(closed: Any) -> str:
  return closed.jaxpr.debug_info.func_src_info
