"""Differentiable inner optimisation: an optax optimizer unrolled under scan."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from metajax import (
  custom_rules,
  differentiability,
  mixed_mode,
  optimizers,
  variables,
)
from metajax.numerics import check_counts, check_scalar
from metajax.types import Array, Params

Memory = Literal["auto", "mixed", "plain", "remat", "nested"]

GRADIENTS = "inner_gradients"  # Name for policies of `jax.checkpoint`.
TASK_AXIS = "metajax_tasks"  # The vmapped axis of tasks.


class InnerLoop(NamedTuple):
  """The result of an inner loop.

  Attributes:
    params: the adapted parameters, a tree like the initial ones.
    losses: `[num_steps]`, the loss before each step.
    observed: what `observe` returned after each step, with a leading axis of
      size `num_steps`. None without `observe`, or without a step.
    state: the last state that the loss returned.
    opt_state: the last state of the optimizer.
    trained: the last parameters that the optimizer trains, from which a further
      loop with `opt_state` goes on. Most optimizers train `params`.
  """

  params: Params
  losses: Array
  observed: Any = None
  state: Any = None
  opt_state: optax.OptState = None
  trained: Params = None


def minimize(
  loss_fn: Callable[..., Any],
  params: Params,
  optimizer: optax.GradientTransformation,
  num_steps: int | Array,
  *,
  state: Any = None,
  opt_state: optax.OptState | None = None,
  first_order: bool = False,
  memory: Memory = "auto",
  observe: Callable[..., Any] | None = None,
) -> InnerLoop:
  """Takes `num_steps` optimizer steps on a loss, differentiably.

  With optimizer `u` and its state `s`, for k = 0 .. num_steps - 1::

    delta_k, s_{k+1} = u(grad loss(phi_k, k), s_k, phi_k)
    phi_{k+1} = phi_k + delta_k,    phi_0 = params

  The result can be differentiated to any order, with respect to `params` and to
  all captured variables of `loss_fn` and `optimizer`. It can be jitted, vmapped
  and scanned. With `memory="mixed"` take the first derivative in reverse mode:
  `jax.grad` and `jax.hessian` work, `jax.jacfwd` alone does not.

  Some optimizers have NaN derivatives. Adam without `eps_root > 0` has them
  wherever an inner gradient is zero. A warning says so when such an optimizer
  is differentiated.

  Args:
    loss_fn: `(params, step) -> scalar`. `step` is the int32 index k, from which
      a stochastic loss takes its minibatch or its key. With `state`: `(params,
      step, state) -> (scalar, state)`.
    params: the initial parameters, a tree of arrays or Python floats. Leaves
      that are not floating point (counts, keys) are constants. The loss sees
      them, the optimizer does not.
    optimizer: any optimizer of optax. It may capture meta-parameters, such as
      learned step sizes. It receives the extra arguments that it takes
      (`value`, `grad`, `value_fn`, ...), all of this step's loss. Some
      optimizers evaluate other parameters than they train (schedule-free,
      lookahead); the result has the parameters to evaluate.
    num_steps: the number of steps, at least 0. It may be a traced int32, so
      that one program serves every number of steps. The result then has no
      `losses` and cannot be differentiated in reverse mode; `observe` is an
      error.
    state: what the loss passes from step to step without a gradient, such as
      running statistics. None: nothing.
    opt_state: the first state of the optimizer; None: a new one.
    first_order: treat the inner gradients as constants. d phi_K / d params is
      then the identity for any optimizer that reads only gradients (Finn et al.
      2017, section 5.2). The loss is not differentiated a second time, and none
      of its values are stored. Captured variables of `optimizer` still get
      their gradients; those of `loss_fn` get none.
    memory: what is stored for the backward pass, and what is computed again:

      - `"auto"`: `"mixed"`, or `"remat"` if the loss has a differentiation rule
        that need not be a derivative, such as a `custom_vjp` (see
        `custom_rules.first`).
      - `"mixed"`: stores the parameters, the optimizer state and the inner
        gradients of every step, and differentiates the gradients forward over
        reverse (`mixed_mode.value_and_grad`). The fastest way measured on CPUs,
        and the smallest for deep models. An error with such a rule.
      - `"plain"`: JAX's own way, reverse over reverse. Stores the activations
        of every step.
      - `"remat"`: stores only the parameters and the optimizer state of every
        step, and computes each step again in the backward pass.
      - `"nested"`: stores them only between blocks of `sqrt(num_steps)` steps,
        and within the current block. Memory grows as `2 sqrt(num_steps)`
        states. Each step is computed once more than with `"remat"`.
    observe: `(params, step) -> tree of arrays`, called after each step with
      `phi_{k+1}` and k, and with the new state if there is one. It is
      differentiated like the rest.

  Returns:
    An `InnerLoop`: the adapted parameters, the loss before each step, and what
    was observed.

  Raises:
    ValueError: if the loss is no scalar; if `num_steps` is negative, or traced
      beside `observe`; if no parameter is floating point; if `memory` is
      unknown, or if it is `"mixed"` and the loss has a rule that need not be a
      derivative.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017.
  """
  check_steps(num_steps=num_steps)
  check_memory(memory)

  def loss_of(phi: Params, k: Array, kept: Any) -> tuple[Array, Any]:
    phi = variables.combine(phi, params)
    if state is None:
      loss, new = loss_fn(phi, k), None
    else:
      loss, new = loss_fn(phi, k, kept)
    check_scalar("loss_fn", loss)
    return loss, new

  weights = jax.tree.map(jnp.asarray, variables.weights(params))
  if not jax.tree.leaves((weights, variables.states(params))):
    if leaves := jax.tree.leaves(params):
      raise ValueError(
        f"params: {jnp.result_type(leaves[0])} given, must have a floating "
        "point number, since nothing else takes steps."
      )
  if first_order and memory in ("auto", "mixed"):
    memory = "plain"  # Constant gradients are not differentiated.
  elif memory == "auto":
    traced = jax.make_jaxpr(loss_of)(weights, jnp.int32(0), state)
    memory = "remat" if custom_rules.first(traced.jaxpr) else "mixed"
  mixed = memory == "mixed"
  value_and_grad = mixed_mode.value_and_grad if mixed else jax.value_and_grad

  def step(carry, k):
    phi, opt_state, kept = carry
    at = jax.lax.stop_gradient(phi) if first_order else phi
    (loss, new), grads = value_and_grad(loss_of, has_aux=True)(at, k, kept)
    if first_order:
      loss, grads = jax.lax.stop_gradient((loss, grads))
    grads = checkpoint_name(grads, GRADIENTS)
    grads = differentiability.watched(grads, optimizer, phi)
    updates, opt_state = optimizers.update(
      optimizer,
      grads,
      opt_state,
      phi,
      value=loss,
      value_fn=lambda phi: loss_of(phi, k, kept)[0],
      differentiable=True,
    )
    phi = optax.apply_updates(phi, updates)
    new = jax.lax.stop_gradient(new)
    seen = None
    if observe is not None:
      judged = optimizers.evaluation_params(opt_state, phi)
      judged = variables.combine(judged, params)
      seen = observe(judged, k) if state is None else observe(judged, k, new)
    return (phi, opt_state, new), (loss, seen)

  first_step = later_step = step
  if memory != "plain":
    # `prevent_cse` keeps XLA from merging the two computations of a step. In a
    # scan XLA cannot merge them, and the barriers would only cost time.
    keep = jax.checkpoint_policies.save_only_these_names(GRADIENTS)
    policy = keep if mixed else None
    first_step = jax.checkpoint(step, policy=policy)
    later_step = jax.checkpoint(step, policy=policy, prevent_cse=False)

  if opt_state is None:
    opt_state = optimizers.init(optimizer, weights)
  carry = weights, opt_state, jax.lax.stop_gradient(state)
  if isinstance(num_steps, jax.core.Tracer):
    if observe is not None:
      raise ValueError("num_steps: must be a Python int beside `observe`.")
    carry = jax.lax.fori_loop(0, num_steps, lambda k, c: step(c, k)[0], carry)
    num_steps = 0
  outputs = []
  later = jnp.arange(num_steps, dtype=jnp.int32)
  if num_steps > 0 and (num_steps == 1 or _among_tasks()):
    # The first step is outside the scan. There the tasks of a chunk still share
    # their parameters, so XLA merges their matrix products into one. Inside the
    # scan the parameters are batched from the first iteration on. The price is
    # two fifths of the program of conv4-32, and a fifth of its compile time.
    carry, output = first_step(carry, later[0])
    outputs.append(jax.tree.map(lambda x: x[None], output))
    later = later[1:]
  if memory == "nested" and later.size > 1:
    length = math.isqrt(later.size)
    whole = later.size // length * length

    def block(carry, steps):
      return jax.lax.scan(later_step, carry, steps)

    carry, blocks = jax.lax.scan(
      jax.checkpoint(block, prevent_cse=False),
      carry,
      later[:whole].reshape(-1, length),
    )
    outputs.append(
      jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), blocks)
    )
    later = later[whole:]
  if later.size:
    carry, rest = jax.lax.scan(later_step, carry, later)
    outputs.append(rest)
  adapted, opt_state, state = carry
  trained = variables.combine(adapted, params)
  adapted = optimizers.evaluation_params(opt_state, adapted)
  adapted = variables.combine(adapted, params)
  if not outputs:
    return InnerLoop(adapted, jnp.zeros(0), None, state, opt_state, trained)
  losses, observed = jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)
  return InnerLoop(adapted, losses, observed, state, opt_state, trained)


def _among_tasks() -> bool:
  """Whether this is traced under a vmap over tasks, which names its axis."""
  try:
    return jax.lax.axis_size(TASK_AXIS) > 0
  except NameError:
    return False


def check_steps(**numbers: int | Array) -> None:
  """Checks numbers of steps, as `check_counts` does. They may be 0."""
  check_counts(at_least=0, **numbers)


def check_memory(memory: str) -> None:
  """Raises a `ValueError` if `memory` is not one of `Memory`."""
  if memory not in get_args(Memory):
    raise ValueError(f"memory={memory!r}: must be one of {get_args(Memory)}.")
