"""Gradients whose own backward pass is one forward-over-reverse product."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import custom_rules
from metajax.types import Array, Params


def value_and_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, Params]]:
  """As `jax.value_and_grad`, but differentiated again by mixed-mode.

  The gradient g(p, c) of L with respect to its first argument p, where c is all
  that `loss_fn` closes over, is pulled back along a cotangent u by one
  Jacobian-vector product of the gradient in both::

    u' dg/dp, u' dg/dc  =  d/de  grad_(p, c) L(p + e u, c)   at e = 0

  since the matrix of second derivatives is symmetric. It is for every gradient
  that is one: a `custom_vjp` may have any other rule. Reverse-over-reverse,
  JAX's own way, keeps the whole backward pass of the inner gradient until the
  outer one comes; here p, c and nothing else are kept.

  Args:
    loss_fn: `(params, *rest) -> scalar`. It may close over anything, traced
      values and meta-parameters among them, which get their gradients; `rest`
      gets none.
    has_aux: whether it returns `(scalar, aux)`; aux gets no gradient.

  Returns:
    `(params, *rest) -> (loss, grads)`, or `((loss, aux), grads)`, to be
    differentiated in reverse mode; that derivative can be differentiated in any
    mode, which is JAX's own way again.

  Raises:
    ValueError: when it is called, if `loss_fn` has a differentiation rule that
      need not be a derivative, see `custom_rules.first`, or is no scalar.

  References:
    Kemaev et al., `Scalable Meta-Learning via Mixed-Mode Differentiation
    <https://arxiv.org/abs/2505.00793>`_, 2025, section 3.
  """

  def with_aux(params: Params, *rest: Any) -> tuple[Array, Any]:
    return loss_fn(params, *rest) if has_aux else (loss_fn(params, *rest), ())

  def run(params: Params, *rest: Any) -> tuple[Any, Params]:
    # What is closed over must become an argument of the rule below.
    trace = jax.make_jaxpr(with_aux, return_shape=True)
    traced, output = trace(params, *rest)
    jaxpr, tree = traced.jaxpr, jax.tree.structure(output)
    if rule := custom_rules.first(jaxpr):
      raise ValueError(
        f"memory='mixed': loss_fn has the {rule}, which need not be a "
        "derivative; give memory='auto' or 'remat'."
      )
    inexact = [
      jnp.issubdtype(jnp.result_type(c), jnp.inexact) for c in traced.consts
    ]
    both = list(zip(traced.consts, inexact, strict=True))
    smooth = [c for c, is_smooth in both if is_smooth]
    others = [c for c, is_smooth in both if not is_smooth]
    inputs = jax.tree.leaves((params, *rest))
    kinds = [_kind(x) for x in [*traced.consts, *inputs]]
    others, rest = jax.tree.map(_without_kind, (others, rest))

    def loss(params: Params, smooth: list, others: list, rest: tuple) -> tuple:
      queues = {True: iter(smooth), False: iter(others)}
      consts = [next(queues[is_smooth]) for is_smooth in inexact]
      inputs = jax.tree.leaves((params, *rest))
      given = list(map(_with_kind, [*consts, *inputs], kinds))
      consts, inputs = given[: len(consts)], given[len(consts) :]
      # Not `traced`, which has tracers that JAX's caches would keep.
      outputs = jax.core.eval_jaxpr(jaxpr, consts, *inputs)
      return jax.tree.unflatten(tree, outputs)

    @jax.custom_vjp
    def gradient(*arguments: Any) -> tuple[tuple, Params]:
      return jax.value_and_grad(loss, has_aux=True)(*arguments)

    def forward(*arguments: Any) -> tuple[Any, tuple]:
      # Not `gradient` again: in a scan, JAX's partial evaluation of a call
      # with a rule of its own may lose terms of a second derivative.
      return jax.value_and_grad(loss, has_aux=True)(*arguments), arguments

    def backward(arguments: tuple, cotangents: tuple) -> tuple:
      params, smooth, *unchanged = arguments
      (of_loss, _), along = cotangents

      # The loss's own cotangent is the tangent of a factor before the loss:
      # its gradient is added along the way, and is no tree to be kept.
      def slopes(params: Params, factor: Array) -> tuple[Params, list]:
        def scaled(params: Params, smooth: list) -> Array:
          return factor * loss(params, smooth, *unchanged)[0]

        return jax.grad(scaled, (0, 1))(params, smooth)

      one = jnp.ones_like(of_loss)
      _, total = jax.jvp(slopes, (params, one), (along, of_loss))
      return *total, None, None

    gradient.defvjp(forward, backward)
    (value, aux), grads = gradient(params, smooth, others, rest)
    return (value, aux) if has_aux else value, grads

  return run


def _kind(x: Any) -> Any:
  """Returns a key's implementation; None for all else."""
  is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
  return jax.random.key_impl(x) if is_key else None


def _without_kind(x: Any) -> Any:
  """Returns a key's data: for JAX, a rule of its own uses up every key."""
  return x if _kind(x) is None else jax.random.key_data(x)


def _with_kind(x: Any, kind: Any) -> Any:
  return x if kind is None else jax.random.wrap_key_data(x, impl=kind)
