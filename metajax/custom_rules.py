"""Finds differentiation rules in a function that need not be its derivative."""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

# Whose `custom_jvp` rules are derivatives; a root is as good as its solver.
_PACKAGES = tuple(
  os.path.dirname(str(package.__file__)) + os.sep for package in (jax, optax)
)
_INEXACT = ("_custom_root",)
# The one linear solver of JAX that does not iterate.
_DIRECT = os.path.join(_PACKAGES[0], "_src", "lax", "linalg.py")


def first(jaxpr: Jaxpr) -> str | None:
  """Names the first rule in a program that need not be a derivative.

  Such rules are those of `custom_vjp` and `custom_gradient`, and of a
  `custom_jvp`, `custom_root`, `linear_call` or an iterative linear solver. The
  `custom_jvp` functions of JAX and optax (`relu`, `logaddexp`, ...) have their
  derivatives as rules and are passed over. So is `stop_gradient`, whose value
  is a constant in derivatives of every order.

  Args:
    jaxpr: the traced function. Every program within it (of `jit`, `scan`,
      `while_loop`, `cond`, `checkpoint`, `shard_map`, ...) is searched too.

  Returns:
    Its kind, function and place, as in "rule of the custom_vjp clip at
    model.py:12";
    None if there is none.
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
  """Whether a `custom_jvp` is one that JAX or optax itself defines."""
  info = eqn.params["call_jaxpr"].jaxpr.debug_info
  rule = eqn.params["jvp_jaxpr_fun"].debug_info
  return (
    info.func_name not in _INEXACT
    and (rule.func_filename or "").startswith(_PACKAGES)
    and (info.func_filename or "").startswith(_PACKAGES)
    # Not a function of JAX that somebody else has given a rule.
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
