"""Hypergradients: of an outer loss through the solution of an inner problem."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from metajax import variables
from metajax.bilevel.inner import (
  InnerState,
  Outer,
  Solver,
  check_real,
)
from metajax.numerics import check_scalar
from metajax.types import Array, Params


class Hypergradient(NamedTuple):
  """The outer loss, its gradient, and how far both can be trusted.

  Attributes:
    value: scalar, the outer loss.
    grads: a tree like `outer`, the gradient of the outer loss.
    aux: what else the outer loss returned. It can be differentiated.
    params: the inner parameters at the end.
    state: where the next solve starts.
    residual: scalar, the norm of the gradient of the inner loss.
    linear_residual: scalar, `|H x - b| / |b|` of the linear system of an
      implicit method; 0 of the other methods.
  """

  value: Array
  grads: Outer
  aux: Any
  params: Params
  state: InnerState
  residual: Array
  linear_residual: Array


def hypergradient(
  solver: Solver, outer_loss: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Hypergradient]:
  """Builds the gradient of an outer loss through an inner problem.

  ::

    F(outer) = outer_loss(theta(outer), outer)
    dF / d outer  =  partial F / partial outer
                     + (d theta / d outer)^T  partial F / partial theta

  where theta(outer) is the solution of the inner problem, and `solver` defines
  its derivative: `unrolled`, `truncated`, `forward` or `implicit`. It is pure:
  jit it, vmap it over `outer` and `state`, scan it, differentiate it again.

  Args:
    solver: solves the inner problem.
    outer_loss: `(params, outer, *rest) -> scalar`, or `(scalar, aux)`.
    has_aux: whether `outer_loss` returns `aux`, any tree of arrays.

  Returns:
    `(state, outer, *rest) -> Hypergradient`. Start at `solver.init(params,
    outer)`. Continue from the `state` of the result (a warm start), or from the
    same state (a new start). It raises a `ValueError` for an `outer` that is
    not real, an outer loss that is no scalar, or a state of something else.
  """

  def with_aux(params: Params, outer: Outer, *rest: Any) -> tuple[Array, Any]:
    found = outer_loss(params, outer, *rest)
    if has_aux and not (isinstance(found, tuple) and len(found) == 2):
      raise ValueError(
        "outer_loss: must return (scalar, aux) with has_aux=True."
      )
    value, aux = found if has_aux else (found, None)
    check_scalar("outer_loss", value)
    return value, aux

  def by_jax(state: InnerState, outer: Outer, *rest: Any) -> Hypergradient:
    def objective(outer: Outer) -> tuple[Array, tuple]:
      solution = solver.solve(state, outer)
      value, aux = with_aux(solution.params, outer, *rest)
      return value, (value, aux, solution)

    differentiate = jax.jacfwd if solver.forward else jax.grad
    grads, (value, aux, solution) = differentiate(objective, has_aux=True)(
      outer
    )
    none = jnp.zeros_like(value)
    params, state, residual = solution
    return Hypergradient(value, grads, aux, params, state, residual, none)

  def by_adjoint(state: InnerState, outer: Outer, *rest: Any) -> Hypergradient:
    assert solver.adjoint is not None
    solution = solver.solve(state, outer)

    def objective(weights: Params, outer: Outer) -> tuple[Array, Any]:
      params = variables.combine(weights, solution.params)
      return with_aux(params, outer, *rest)

    (value, aux), (cotangent, own) = jax.value_and_grad(
      objective, (0, 1), has_aux=True
    )(variables.weights(solution.params), outer)
    through, error = solver.adjoint(solution, outer, cotangent)
    grads = jax.tree.map(jnp.add, own, through)
    return Hypergradient(value, grads, aux, *solution, error)

  differentiated = by_jax if solver.adjoint is None else by_adjoint

  def checked(state: InnerState, outer: Outer, *rest: Any) -> Hypergradient:
    if not isinstance(state, InnerState):
      raise ValueError(
        f"state is {type(state).__name__}: must be `solver.init(params, "
        "outer)`, or the `state` of a result."
      )
    check_real("outer", outer)
    return differentiated(state, outer, *rest)

  return checked


def check(
  found: Hypergradient,
  *,
  tolerance: float = 1e-3,
  linear_tolerance: float = 1e-3,
) -> None:
  """Raises an error if a hypergradient of an implicit method is not accurate.

  Call it on results of compiled programs. Inside of one it is a
  `checkify.check`: the program must be transformed by
  `jax.experimental.checkify.checkify`, whose `error.throw()` raises the error.
  For arrays (under vmap) the largest residual counts.

  Args:
    found: a result of `hypergradient`.
    tolerance: largest norm of the gradient of the inner loss.
    linear_tolerance: largest relative residual of the linear system.

  Raises:
    ValueError: for a larger residual, or one that is not a number; and if the
      hypergradient is not finite.
  """
  inner, linear = jnp.max(found.residual), jnp.max(found.linear_residual)
  leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(found.grads)]
  _require(
    inner <= tolerance,
    "the inner problem has not converged: its gradient has the norm {inner}, "
    f"above tolerance={tolerance:g}. Take more inner steps, another step size, "
    "or a warm start.",
    inner=inner,
  )
  _require(
    linear <= linear_tolerance,
    "the linear system is not solved: its relative residual is {linear}, above "
    f"linear_tolerance={linear_tolerance:g}. Take more steps of the linear "
    "solver; if the Hessian is singular or not positive definite, add a "
    "penalty to the inner loss, or take `unrolled`.",
    linear=linear,
  )
  _require(
    jnp.array(leaves).all(),
    "the hypergradient is not finite, though the inner problem has converged: "
    "look for a square root, a norm or a logarithm at 0 in the losses.",
  )


def _require(holds: Array, message: str, **numbers: Any) -> None:
  if isinstance(holds, jax.core.Tracer):
    checkify.check(holds, message, **numbers)
  elif not holds:
    shown = {name: f"{x:.3g}" for name, x in numbers.items()}
    raise ValueError(message.format(**shown))
