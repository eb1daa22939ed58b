"""Inner problems that are solved by steps, and differentiated through them."""

import jax

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


def _solution(
  inner_loss: InnerLoss, ended: InnerState, outer: Outer
) -> Solution:
  state, fixed = jax.lax.stop_gradient((ended, outer))
  weights = variables.weights(evaluated(state))
  grads = slope(inner_loss, state, fixed)(weights)
  return Solution(evaluated(ended), state, norm(grads))
