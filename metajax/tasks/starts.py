"""Starts of episodes that are drawn only where an episode has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, PRNGKey


def where_ended(begin: Callable[[PRNGKey, Any], Any]) -> Callable[..., Any]:
  """Returns `(ended, key, task, old)` -> a fresh start where ended, else old.

  Under `vmap`, a plain `lax.cond` would run both branches in every step. This
  function begins an episode of all tasks at once, and only in a step that ends
  an episode of some task.

  Args:
    begin: `(key, task) -> start`, a tree of arrays.
  """

  @jax.custom_batching.custom_vmap
  def choose(ended: Array, key: PRNGKey, task: Any, old: Any) -> Any:
    # All arguments have the leading axes of `ended`.
    fresh = begin
    for _ in range(ended.ndim):
      fresh = jax.vmap(fresh)

    def where(new: Array, old: Array) -> Array:
      axes = [1] * (jnp.ndim(old) - ended.ndim)
      return jnp.where(ended.reshape(*ended.shape, *axes), new, old)

    return jax.lax.cond(
      ended.any(),
      lambda: jax.tree.map(where, fresh(key, task), old),
      lambda: old,
    )

  @choose.def_vmap
  def _(axis_size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
    arguments = jax.tree.map(
      lambda x, has: x if has else jnp.broadcast_to(x, (axis_size, *x.shape)),
      arguments,
      tuple(batched),
    )
    chosen = choose(*arguments)
    return chosen, jax.tree.map(lambda _: True, chosen)

  return choose
