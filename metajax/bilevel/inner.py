"""Inner problems: what states them, where they stand, and who solves them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop, optimizers, variables
from metajax.numerics import check_scalar
from metajax.types import Array, Params

Outer = Any  # a tree of floating point arrays
InnerLoss = Callable[[Params, Outer, Array], Array]
# An optimizer of optax, or `outer -> optimizer` if it has hyper-parameters.
_OptimizerOf = Callable[[Outer], optax.GradientTransformation]
InnerOptimizer: TypeAlias = optax.GradientTransformation | _OptimizerOf


class InnerState(NamedTuple):
  """Where the inner problem stands. It is carried between outer steps.

  Attributes:
    params: the inner parameters that the optimizer trains. Few optimizers
      evaluate others, see `evaluated`.
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

  def loss(params: Params, k: Array) -> Array:
    value = inner_loss(params, outer, state.step + k)
    check_scalar("inner_loss", value)
    return value

  loop = inner_loop.minimize(
    loss,
    state.params,
    _at(optimizer, outer),
    num_steps,
    opt_state=state.opt_state,
    memory=memory,
  )
  return InnerState(loop.trained, loop.opt_state, state.step + num_steps)


def evaluated(state: InnerState) -> Params:
  """Returns the parameters to evaluate, see `optimizers.evaluation_params`."""
  weights = variables.weights(state.params)
  found = optimizers.evaluation_params(state.opt_state, weights)
  return variables.combine(found, state.params)


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
    value = inner_loss(whole, outer, state.step)
    check_scalar("inner_loss", value)
    return value

  return jax.grad(loss)


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
