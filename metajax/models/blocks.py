"""Examples in blocks whose temporaries fit a core's cache."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metajax.types import Array

BLOCK_BYTES = 2 * 2**20


def in_blocks(fn: Callable[[Array], Any], x: Array, bytes_each: int) -> Any:
  """Returns `fn(x)`, a few examples at a time if they need much memory.

  The temporaries of a block are freed after it and made again for the backward
  pass. A core is faster with temporaries that stay in its second cache (0.5 to
  2 MB on today's CPUs) than with those of all examples in memory, by a third
  for convolutions of conv4-64 (75 images of 16 x 16).

  Args:
    fn: `[m, ...] -> [m, ...]`, or a tree of such, for any m; by examples.
    x: `[n, ...]`.
    bytes_each: temporaries of an example.
  """
  n = x.shape[0]
  num_blocks = _count(n, n * bytes_each / BLOCK_BYTES)
  if num_blocks <= 1:
    return fn(x)
  size = -(-n // num_blocks)
  num_blocks = -(-n // size)
  x = jnp.pad(x, [(0, size * num_blocks - n), *[(0, 0)] * (x.ndim - 1)])
  outputs = lax.map(
    jax.checkpoint(fn, prevent_cse=False),
    x.reshape(num_blocks, size, *x.shape[1:]),
  )
  return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:n], outputs)


def _count(n: int, wanted: float) -> int:
  """Returns how many blocks n examples make, about as many as wanted.

  If possible of one size: a rest is padded, which costs a pass over all.
  """
  if wanted <= 1:
    return 1
  even = [k for k in range(1, n + 1) if n % k == 0 and 0.5 <= k / wanted <= 4]
  nearest = min(even, key=lambda k: abs(math.log(k / wanted)), default=0)
  return nearest or min(n, math.ceil(wanted))
