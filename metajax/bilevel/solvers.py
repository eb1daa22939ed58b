"""Inner problems that are solved by steps, and differentiated through them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop, optimizers, variables
from metajax.types import Array, Params

Outer = Any  # a tree of floating point arrays
InnerLoss = Callable[[Params, Outer, Array], Array]
# An optimizer of optax, or `outer -> optimizer` if it has hyper-parameters.
_OptimizerOf = Callable[[Outer], optax.GradientTransformation]
InnerOptimizer: TypeAlias = optax.GradientTransformation | _OptimizerOf


class InnerState(NamedTuple):
  """Where the inner problem stands. It is carried between outer steps.

  Attributes:
    params: the inner parameters.
    opt_state: the state of the inner optimizer.
    step: int32, the number of inner steps taken so far.
  """

  params: Params
  opt_state: optax.OptState
  step: Array


class Solution(NamedTuple):
  """A solution of the inner problem.

  Attributes:
    params: the inner parameters, as a differentiable function of `outer`.
    state: where the next solve starts. It is a constant.
    residual: scalar, the norm of the gradient of the inner loss at `params`. It
      is a constant. A stochastic loss is that of the step `state.step`.
  """

  params: Params
  state: InnerState
  residual: Array


class Solver(NamedTuple):
  """A way to solve an inner problem and to differentiate its solution.

  Attributes:
    init: `(params, outer) -> InnerState`, at inner step 0.
    solve: `(state, outer) -> Solution`. The derivative of its `params` with
      respect to `outer` is that of the method. `state` is a constant.
    adjoint: `(solution, outer, cotangent) -> (grads, linear_residual)`. It
      multiplies a cotangent of the weights by the derivative. `linear_residual`
      is the relative residual of the linear system. None: JAX differentiates
      `solve`.
    forward: whether to differentiate `solve` in forward mode.
  """

  init: Callable[[Params, Outer], InnerState]
  solve: Callable[[InnerState, Outer], Solution]
  adjoint: Callable[..., tuple[Outer, Array]] | None = None
  forward: bool = False


def unrolled(
  inner_loss: InnerLoss,
  optimizer: InnerOptimizer,
  num_steps: int,
  *,
  memory: inner_loop.Memory = "auto",
) -> Solver:
  """Differentiates through all steps of the inner optimizer, in reverse mode.

  ::

    theta_{k+1} = theta_k + u(grad L(theta_k, outer, k)),  k < num_steps (K)
    d theta_K / d outer  =  sum over k of  A_{K-1} ... A_{k+1} B_k
    A_k = d theta_{k+1} / d theta_k,  B_k = d theta_{k+1} / d outer

  The derivative is exact for any number of steps.

  Args:
    inner_loss: L, `(params, outer, step) -> scalar`. `step` is int32. A
      stochastic loss takes its batch from it. Captured variables may be traced
      values.
    optimizer: any optimizer of optax, or `outer -> optimizer`, for learned step
      sizes.
    num_steps: K, inner steps of one solve, at least 0.
    memory: see `inner_loop.minimize`.

  Raises:
    ValueError: for a negative number of steps, or an unknown `memory`.

  References:
    Maclaurin et al., `Gradient-based Hyperparameter Optimization through
    Reversible Learning <https://arxiv.org/abs/1502.03492>`_, 2015, section 2.
    Franceschi et al., `Forward and Reverse Gradient-Based Hyperparameter
    Optimization <https://arxiv.org/abs/1703.01785>`_, 2017, equations 11, 13.
  """
  return truncated(inner_loss, optimizer, num_steps, num_steps, memory=memory)


def truncated(
  inner_loss: InnerLoss,
  optimizer: InnerOptimizer,
  num_steps: int,
  last: int = 1,
  *,
  memory: inner_loop.Memory = "auto",
) -> Solver:
  """Differentiates through the last steps of the inner optimizer only.

  The parameters before them are constants. If the inner steps contract with the
  rate q, the bias decreases as `q^last`. With `last=1` and SGD the derivative
  is that of the method T1-T2 (one-step differentiation)::

    d theta_K / d outer  =  - step size  d^2 L / d theta d outer

  Args:
    inner_loss: see `unrolled`.
    optimizer: see `unrolled`.
    num_steps: K, inner steps of one solve.
    last: the number of steps to differentiate, from 0 to `num_steps`.
    memory: see `inner_loop.minimize`.

  Raises:
    ValueError: for a number of steps out of range, or an unknown `memory`.

  References:
    Luketina et al., `Scalable Gradient-Based Tuning of Continuous
    Regularization Hyperparameters <https://arxiv.org/abs/1511.06727>`_, 2016.
    Shaban et al., `Truncated Back-propagation for Bilevel Optimization
    <https://arxiv.org/abs/1810.10667>`_, 2019, proposition 3.1.
    Bolte et al., `One-step differentiation of iterative algorithms
    <https://arxiv.org/abs/2305.13768>`_, 2023.
  """
  inner_loop.check_steps(num_steps=num_steps, last=last)
  if last > num_steps:
    raise ValueError(f"last={last}: must be at most num_steps={num_steps}.")
  inner_loop.check_memory(memory)

  def solve(state: InnerState, outer: Outer) -> Solution:
    state = jax.lax.stop_gradient(state)
    fixed = jax.lax.stop_gradient(outer)
    early = run(inner_loss, optimizer, num_steps - last, state, fixed)
    state = jax.lax.stop_gradient(early)
    return _solution(
      inner_loss,
      run(inner_loss, optimizer, last, state, outer, memory=memory),
      outer,
    )

  return Solver(beginning(optimizer), solve)


def forward(
  inner_loss: InnerLoss, optimizer: InnerOptimizer, num_steps: int
) -> Solver:
  """Differentiates through all steps of the inner optimizer, in forward mode.

  ::

    Z_0 = 0,  Z_{k+1} = A_k Z_k + B_k,  d theta_K / d outer = Z_K

  with A and B as in `unrolled`. The result is the same. The memory does not
  depend on the number of steps. Time and memory grow with the number of outer
  parameters, so take it for few of them.

  Args:
    inner_loss: see `unrolled`.
    optimizer: see `unrolled`.
    num_steps: K, inner steps of one solve, at least 0.

  Raises:
    ValueError: for a negative number of steps.

  References:
    Franceschi et al., `Forward and Reverse Gradient-Based Hyperparameter
    Optimization <https://arxiv.org/abs/1703.01785>`_, 2017, equation 16.
  """
  inner_loop.check_steps(num_steps=num_steps)

  def solve(state: InnerState, outer: Outer) -> Solution:
    state = jax.lax.stop_gradient(state)
    ended = run(inner_loss, optimizer, num_steps, state, outer, memory="plain")
    return _solution(inner_loss, ended, outer)

  return Solver(beginning(optimizer), solve, forward=True)


def run(
  inner_loss: InnerLoss,
  optimizer: InnerOptimizer,
  num_steps: int,
  state: InnerState,
  outer: Outer,
  *,
  memory: inner_loop.Memory = "auto",
) -> InnerState:
  """Takes inner steps from a state. The result is differentiable."""
  loop = inner_loop.minimize(
    lambda params, k: inner_loss(params, outer, state.step + k),
    state.params,
    _at(optimizer, outer),
    num_steps,
    opt_state=state.opt_state,
    memory=memory,
  )
  return InnerState(loop.params, loop.opt_state, state.step + num_steps)


def beginning(
  optimizer: InnerOptimizer,
) -> Callable[[Params, Outer], InnerState]:
  """Returns the `init` of a solver with this optimizer."""

  def init(params: Params, outer: Outer) -> InnerState:
    params = jax.tree.map(jnp.asarray, params)
    weights = variables.weights(params)
    if not jax.tree.leaves(weights):
      raise ValueError("params: no floating point number to train.")
    opt_state = optimizers.init(_at(optimizer, outer), weights)
    return InnerState(params, opt_state, jnp.int32(0))

  return init


def slope(
  inner_loss: InnerLoss, state: InnerState, outer: Outer
) -> Callable[[Params], Params]:
  """Returns the gradient of the inner loss, as a function of the weights."""

  def loss(weights: Params) -> Array:
    whole = variables.combine(weights, state.params)
    return inner_loss(whole, outer, state.step)

  return jax.grad(loss)


def check_scalar(name: str, value: Any) -> None:
  """Raises a `ValueError` if what a loss returned is not one number."""
  if not jax.tree_util.all_leaves([value]) or jnp.shape(value) != ():
    shapes = jax.tree.map(jnp.shape, value)
    raise ValueError(f"{name}: returned the shape {shapes}; must be a scalar.")


def check_real(name: str, tree: Any) -> None:
  """Raises a `ValueError` for a leaf that has no derivative."""
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
      raise ValueError(
        f"{name}{jax.tree_util.keystr(path)} is {jnp.result_type(x)}; must be "
        "real floating point."
      )


def norm(tree: Any) -> Array:
  """Returns the Euclidean norm of a tree, as a constant of derivatives."""
  return optax.tree.norm(jax.lax.stop_gradient(tree))


def _solution(
  inner_loss: InnerLoss, ended: InnerState, outer: Outer
) -> Solution:
  state, fixed = jax.lax.stop_gradient((ended, outer))
  grads = slope(inner_loss, state, fixed)(variables.weights(state.params))
  return Solution(ended.params, state, norm(grads))


def _at(
  optimizer: InnerOptimizer, outer: Outer
) -> optax.GradientTransformation:
  found = optimizer(outer) if callable(optimizer) else optimizer
  if not (hasattr(found, "init") and hasattr(found, "update")):
    raise ValueError(
      f"optimizer={found}: must be an optimizer of optax, or a function of the "
      "outer parameters that returns one."
    )
  return found
