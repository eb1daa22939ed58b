"""Treats the results of `while_loop`s as constants of the derivative."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal


def constant_loops(fn: Callable) -> Callable:
  """Returns `fn` with the results of its `while_loop`s treated as constants.

  JAX cannot differentiate a loop in reverse mode if the number of its
  iterations depends on data. A line search is such a loop. Its step size
  becomes a constant; the direction of the step keeps its derivative.

  Args:
    fn: any function of trees of arrays.

  Returns:
    The same function. Loops inside `jit` are constants, too.
  """

  def run(*arguments: Any) -> Any:
    traced, output = jax.make_jaxpr(fn, return_shape=True)(*arguments)
    inputs = jax.tree.leaves(arguments)
    outputs = _evaluate(traced.jaxpr, traced.consts, inputs)
    return jax.tree.unflatten(jax.tree.structure(output), outputs)

  return run


def _evaluate(jaxpr: Jaxpr, consts: list, inputs: list) -> list:
  values = dict(
    zip(jaxpr.constvars + jaxpr.invars, [*consts, *inputs], strict=True)
  )

  def read(variable: Any) -> Any:
    is_literal = isinstance(variable, Literal)
    return variable.val if is_literal else values[variable]

  for eqn in jaxpr.eqns:
    given = [read(variable) for variable in eqn.invars]
    if eqn.primitive.name == "while":
      given = jax.lax.stop_gradient(given)
    if eqn.primitive.name == "jit":
      inner = eqn.params["jaxpr"]
      outputs = _evaluate(inner.jaxpr, inner.consts, given)
    else:
      outputs = _apply(jaxpr, eqn, given)
    values.update(zip(eqn.outvars, outputs, strict=True))
  return [read(variable) for variable in jaxpr.outvars]


def _apply(jaxpr: Jaxpr, eqn: Any, given: list) -> list:
  """Evaluates one equation."""
  arguments = {
    variable: value
    for variable, value in zip(eqn.invars, given, strict=True)
    if not isinstance(variable, Literal)
  }
  alone = jaxpr.replace(
    constvars=[],
    invars=list(arguments),
    outvars=list(eqn.outvars),
    eqns=[eqn],
    debug_info=jaxpr.debug_info.with_unknown_names(),
  )
  return jax.core.eval_jaxpr(alone, [], *arguments.values())
