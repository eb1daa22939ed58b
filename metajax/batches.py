"""What is asked of a batch, whatever trees its inputs and targets are."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Batch, Episode


def num_examples(batch: Batch) -> int:
  """Returns the length of a batch's arrays, padding included."""
  return jax.tree.leaves(batch.inputs)[0].shape[0]


def real(batch: Batch) -> Array:
  """Returns the batch's mask `[n]`, of ones if it has none."""
  if batch.mask is None:
    return jnp.ones(num_examples(batch), bool)
  return batch.mask


def concatenate(*batches: Batch) -> Batch:
  """Joins batches; the result has a mask if one of them has."""
  if any(batch.mask is not None for batch in batches):
    batches = tuple(batch._replace(mask=real(batch)) for batch in batches)
  return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)


def only_array(tree: Any, what: str, who: str) -> Array:
  """Returns a tree that is one array.

  Raises:
    ValueError: if it is another tree; it says what must be one and for whom.
  """
  if not hasattr(tree, "shape"):
    raise ValueError(
      f"{who}: {what} must be one array, not a {type(tree).__name__} of "
      f"{len(jax.tree.leaves(tree))}."
    )
  return tree


def num_tasks(episodes: Episode) -> int:
  """Returns how many tasks a chunk holds, the first axis of its arrays."""
  return jax.tree.leaves(episodes)[0].shape[0]
