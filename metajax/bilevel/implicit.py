"""Inner problems whose minimum is differentiated implicitly."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import inner_loop, variables
from metajax.bilevel.inner import (
  InnerLoss,
  InnerOptimizer,
  InnerState,
  Outer,
  Solution,
  Solver,
  beginning,
  evaluated,
  norm,
  run,
  slope,
)
from metajax.bilevel.linear import LinearSolver, conjugate_gradients
from metajax.types import Array, Params


def implicit(
  inner_loss: InnerLoss,
  optimizer: InnerOptimizer,
  num_steps: int,
  linear_solver: LinearSolver | None = None,
) -> Solver:
  """Differentiates the minimum of the inner loss implicitly.

  ::

    grad L(theta*, outer) = 0
    d theta* / d outer  =  - H^-1  d^2 L / d theta d outer
    H = d^2 L / d theta^2

  H is at the parameters after `num_steps` of the optimizer. Time and memory of
  the derivative do not depend on the number of steps. The derivative is only
  as good as the inner problem has converged (`residual`) and as the linear
  system is solved (`linear_residual`), see `check`. Hyper-parameters of the
  optimizer have no effect on a minimum and get a gradient of 0.

  The solution can be differentiated to any order, in any mode.

  Args:
    inner_loss: L, see `unrolled`. H of a stochastic loss is that of the step
      after the last.
    optimizer: see `unrolled`.
    num_steps: inner steps of one solve.
    linear_solver: `(product, b) -> x`; None: `conjugate_gradients()`.

  Raises:
    ValueError: for a negative number of steps.

  References:
    Bengio, `Gradient-Based Optimization of Hyperparameters
    <https://doi.org/10.1162/089976600300015187>`_, 2000.
    Blondel et al., `Efficient and Modular Implicit Differentiation
    <https://arxiv.org/abs/2105.15183>`_, 2022, section 2.
  """
  inner_loop.check_steps(num_steps=num_steps)

  def minimize(state: InnerState, outer: Outer) -> InnerState:
    return run(inner_loss, optimizer, num_steps, state, outer)

  return _implicit(
    inner_loss, beginning(optimizer), minimize, num_steps, linear_solver
  )


def implicit_minimum(
  inner_loss: InnerLoss,
  minimize: Callable[[Params, Outer], Params],
  linear_solver: LinearSolver | None = None,
) -> Solver:
  """Differentiates the result of any minimiser, as `implicit` does.

  Args:
    inner_loss: see `unrolled`. Its step is 0 at all times.
    minimize: `(params, outer) -> params`, which starts at the given parameters.
      It need not be differentiable: a `while_loop`, or a closed form.
    linear_solver: see `implicit`.

  Raises:
    ValueError: in use, if `minimize` returns parameters of other shapes.
  """

  def init(params: Params, outer: Outer) -> InnerState:
    del outer
    return InnerState(jax.tree.map(jnp.asarray, params), (), jnp.int32(0))

  def solved(state: InnerState, outer: Outer) -> InnerState:
    found = minimize(state.params, outer)
    shapes = [jax.tree.map(jnp.shape, x) for x in (found, state.params)]
    if shapes[0] != shapes[1]:
      raise ValueError(
        f"minimize: returned the shapes {shapes[0]}, must be {shapes[1]}, "
        "those of the parameters."
      )
    return state._replace(params=found)

  return _implicit(inner_loss, init, solved, 0, linear_solver)


def _implicit(
  inner_loss: InnerLoss,
  init: Callable[[Params, Outer], InnerState],
  minimize: Callable[[InnerState, Outer], InnerState],
  num_steps: int,
  linear_solver: LinearSolver | None,
) -> Solver:
  linear_solver = linear_solver or conjugate_gradients()

  def solve(state: InnerState, outer: Outer) -> Solution:
    state = jax.lax.stop_gradient(state)
    ended = state._replace(step=state.step + num_steps)
    gradient = slope(inner_loss, ended, outer)

    def root(_: Any, weights: Params) -> tuple[Params, Any]:
      params = variables.combine(weights, state.params)
      found = minimize(state._replace(params=params), outer)
      kept = found.opt_state, variables.weights(found.params)
      return variables.weights(evaluated(found)), kept

    weights, (opt_state, trained) = jax.lax.custom_root(
      gradient,
      variables.weights(state.params),
      root,
      linear_solver,
      has_aux=True,
    )
    params = variables.combine(weights, state.params)
    trained = variables.combine(trained, state.params)
    after = InnerState(trained, opt_state, ended.step)
    return Solution(
      params, jax.lax.stop_gradient(after), norm(gradient(weights))
    )

  def adjoint(
    solution: Solution, outer: Outer, cotangent: Params
  ) -> tuple[Outer, Array]:
    weights = variables.weights(solution.params)

    def gradient(weights: Params, outer: Outer) -> Params:
      return slope(inner_loss, solution.state, outer)(weights)

    def product(x: Params) -> Params:  # H x
      return jax.jvp(lambda w: gradient(w, outer), (weights,), (x,))[1]

    x = linear_solver(product, cotangent)
    error = norm(jax.tree.map(jnp.subtract, product(x), cotangent))
    size = norm(cotangent)
    _, pull = jax.vjp(lambda outer: gradient(weights, outer), outer)
    (grads,) = pull(jax.tree.map(jnp.negative, x))
    return grads, error / jnp.where(size > 0, size, 1)

  return Solver(init, solve, adjoint)
