"""A memory of fixed size, which is a uniform sample of all examples so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts
from metajax.types import Array, PRNGKey


class Reservoir(NamedTuple):
  """The state of a reservoir.

  Attributes:
    items: `[capacity, ...]`. The first `min(seen, capacity)` of them are
      examples.
    seen: int32, the number of examples that were added.
  """

  items: Any
  seen: Array


def reservoir(example: Any, capacity: int) -> Reservoir:
  """Builds an empty memory for examples of the shapes and dtypes of `example`.

  Raises:
    ValueError: if the capacity is not positive.
  """
  check_counts(capacity=capacity)
  items = jax.tree.map(
    lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x)), example
  )
  return Reservoir(items, jnp.int32(0))


def add(memory: Reservoir, example: Any, rng: PRNGKey) -> Reservoir:
  """Adds an example at random, so that the memory stays a uniform sample.

  As long as the memory is not full, the example takes the next place. If it is
  full, place j is drawn uniformly from 0, ..., n - 1 for the n-th example. The
  example replaces that of place j if j < capacity. If not, it is dropped
  (Vitter 1985, algorithm R).

  Raises:
    ValueError: for an example of other shapes, or of dtypes that those of the
      memory cannot hold.
  """
  capacity = jax.tree.leaves(memory.items)[0].shape[0]
  drawn = jax.random.randint(rng, (), 0, memory.seen + 1)
  place = jnp.where(memory.seen < capacity, memory.seen, drawn)

  def put(path: Any, items: Array, new: Any) -> Array:
    shape, dtype = jnp.shape(new), jnp.result_type(new)
    fits = jnp.promote_types(dtype, items.dtype) == items.dtype
    if shape != items.shape[1:] or not fits:
      raise ValueError(
        f"example{jax.tree_util.keystr(path)} is {dtype} {shape}, must be "
        f"{items.dtype} {items.shape[1:]} as the others."
      )
    return items.at[place].set(new, mode="drop")

  items = jax.tree_util.tree_map_with_path(put, memory.items, example)
  return Reservoir(items, memory.seen + 1)


def draw(memory: Reservoir, number: int, rng: PRNGKey) -> Any:
  """Draws examples `[number, ...]` uniformly, with replacement.

  An empty memory returns zeros.

  Raises:
    ValueError: if `number` is negative.
  """
  check_counts(number=number, at_least=0)
  capacity = jax.tree.leaves(memory.items)[0].shape[0]
  kept = jnp.minimum(memory.seen, capacity)
  places = jax.random.randint(rng, (number,), 0, jnp.maximum(kept, 1))
  return jax.tree.map(lambda x: x[places], memory.items)
