"""Gradients with a forward-over-reverse product as their backward pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import custom_rules
from metajax.types import Array, Params


def value_and_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, Params]]:
  """Like `jax.value_and_grad`, with a second derivative in mixed mode.

  Let g(p, c) be the gradient of the loss L with respect to its first argument
  p, and c the captured variables of `loss_fn`. The backward pass of g
  multiplies a cotangent u by the second derivatives. It does so by one
  Jacobian-vector product of the gradient with respect to p and c::

    u' dg/dp, u' dg/dc  =  d/de  grad_(p, c) L(p + e u, c)   at e = 0

  This holds because the matrix of second derivatives is symmetric. It is wrong
  for a `custom_vjp` whose rule is not a derivative. Only p and c are stored.
  Reverse over reverse, JAX's own way, stores the whole backward pass of the
  inner gradient.

  Args:
    loss_fn: `(params, *rest) -> scalar`. Captured variables may be traced
      values and meta-parameters. They get their gradients; `rest` gets none.
    has_aux: whether `loss_fn` returns `(scalar, aux)`. `aux` gets no gradient.

  Returns:
    `(params, *rest) -> (loss, grads)`, or `((loss, aux), grads)`. Differentiate
    it in reverse mode first. Derivatives of that derivative are JAX's own, in
    any mode.

  Raises:
    ValueError: at the call, if `loss_fn` has a differentiation rule that need
      not be a derivative (see `custom_rules.first`), or is not a scalar.

  References:
    Kemaev et al., `Scalable Meta-Learning via Mixed-Mode Differentiation
    <https://arxiv.org/abs/2505.00793>`_, 2025, section 3.
  """

  def with_aux(params: Params, *rest: Any) -> tuple[Array, Any]:
    return loss_fn(params, *rest) if has_aux else (loss_fn(params, *rest), ())

  def run(params: Params, *rest: Any) -> tuple[Any, Params]:
    # Captured variables must become arguments of the rule below.
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
      # `jaxpr`, because `traced` holds tracers that JAX's caches would keep.
      outputs = jax.core.eval_jaxpr(jaxpr, consts, *inputs)
      return jax.tree.unflatten(tree, outputs)

    @jax.custom_vjp
    def gradient(*arguments: Any) -> tuple[tuple, Params]:
      return jax.value_and_grad(loss, has_aux=True)(*arguments)

    def forward(*arguments: Any) -> tuple[Any, tuple]:
      # This does not call `gradient` again: in a scan, JAX's partial
      # evaluation of a custom rule can lose terms of a second derivative.
      return jax.value_and_grad(loss, has_aux=True)(*arguments), arguments

    def backward(arguments: tuple, cotangents: tuple) -> tuple:
      params, smooth, *unchanged = arguments
      (of_loss, _), along = cotangents

      # The cotangent of the loss itself enters as the tangent of a factor of
      # the loss. So its gradient needs no tree of its own.
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
  """Returns the implementation of a key; None for any other array."""
  is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
  return jax.random.key_impl(x) if is_key else None


def _without_kind(x: Any) -> Any:
  """Returns the data of a key: JAX counts a key in a rule as consumed."""
  return x if _kind(x) is None else jax.random.key_data(x)


def _with_kind(x: Any, kind: Any) -> Any:
  return x if kind is None else jax.random.wrap_key_data(x, impl=kind)
