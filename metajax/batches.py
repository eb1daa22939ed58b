"""Helpers for batches whose inputs and targets may be any trees of arrays."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Batch, Episode


def num_examples(batch: Batch) -> int:
  """Returns the number of examples of a batch, padding included."""
  return jax.tree.leaves(batch.inputs)[0].shape[0]


def real(batch: Batch) -> Array:
  """Returns the batch's mask `[n]`; all True if it has none."""
  if batch.mask is None:
    return jnp.ones(num_examples(batch), bool)
  return batch.mask


def concatenate(*batches: Batch) -> Batch:
  """Joins batches. The result has a mask if any of them has one."""
  if any(batch.mask is not None for batch in batches):
    batches = tuple(batch._replace(mask=real(batch)) for batch in batches)
  return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)


def only_array(tree: Any, what: str, who: str) -> Array:
  """Returns the tree unchanged if it is a single array.

  Raises:
    ValueError: if it is any other tree. The message names what must be an
      array, and who needs it.
  """
  if not hasattr(tree, "shape"):
    raise ValueError(
      f"{who}: {what} must be one array, not a {type(tree).__name__} of "
      f"{len(jax.tree.leaves(tree))}."
    )
  return tree


def num_tasks(episodes: Episode) -> int:
  """Returns the number of tasks of a chunk: its first axis.

  Raises:
    ValueError: if the first axes differ, as those of a single task do.
  """
  sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(episodes)}
  if len(sizes) != 1 or () in sizes:
    raise ValueError(
      f"episodes: first axes {sorted(sizes)}, must be equal: the tasks of a "
      "chunk. A single task is one of 1: jax.tree.map(lambda x: x[None], "
      "episode)."
    )
  ((size,),) = sizes
  return size


def flat(x: Array) -> Array:
  """Reshapes `[n, ...]` to `[n, features]`, also for n = 0."""
  return x.reshape(len(x), math.prod(x.shape[1:]))
