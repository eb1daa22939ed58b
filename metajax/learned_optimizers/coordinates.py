"""All parameters of a tree as one list of coordinates, and back."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metajax.numerics import wide
from metajax.types import Array, Params

_TINY = 1e-20  # Its power -1.5 is finite in float32.


def flatten(tree: Params) -> Array:
  """Joins the leaves of a tree, `[number of parameters]`, float32 or wider."""
  leaves = [wide(x).ravel() for x in jax.tree.leaves(tree)]
  return jnp.concatenate(leaves) if leaves else jnp.zeros(0)


def unflatten(values: Array, like: Params) -> Params:
  """Cuts `[number of parameters]` into a tree with another's shapes, dtypes."""
  leaves, tree = jax.tree.flatten(like)
  parts, start = [], 0
  for x in leaves:
    part = values[start : start + x.size]
    parts.append(part.reshape(x.shape).astype(x.dtype))
    start += x.size
  return jax.tree.unflatten(tree, parts)


def unit_rms(x: Array, sizes: Sequence[int]) -> Array:
  """Divides each column by its root mean square over each of several parts.

  ::

    x / sqrt(mean of x^2 + 1e-20)

  The result does not depend on the scale of a part, if its root mean square is
  far above 1e-10. A part of zeros stays so, and has finite derivatives.

  Args:
    x: `[n, columns]`.
    sizes: the numbers of rows of the parts, whose sum is n.
  """
  parts, start = [], 0
  for size in sizes:
    part = x[start : start + size]
    mean = jnp.square(part).mean(0) if size else jnp.zeros(x.shape[1:])
    parts.append(part * safe_rsqrt(mean))
    start += size
  return jnp.concatenate(parts) if parts else x


def safe_rsqrt(x: Array) -> Array:
  """Returns `1 / sqrt(x + 1e-20)`, finite with its derivative at zero."""
  return jax.lax.rsqrt(x + _TINY)
