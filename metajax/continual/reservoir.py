"""A memory of fixed size that is a fair sample of all that was ever seen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.types import Array, PRNGKey


class Reservoir(NamedTuple):
  """Examples that are kept.

  Attributes:
    items: `[capacity, ...]`; the first `min(seen, capacity)` are examples.
    seen: int32, how many there were.
  """

  items: Any
  seen: Array


def reservoir(example: Any, capacity: int) -> Reservoir:
  """Makes an empty memory for examples like the given one.

  Raises:
    ValueError: if the capacity is not positive.
  """
  if capacity < 1:
    raise ValueError(f"capacity={capacity}: must be 1 or more.")
  items = jax.tree.map(
    lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x)), example
  )
  return Reservoir(items, jnp.int32(0))


def add(memory: Reservoir, example: Any, rng: PRNGKey) -> Reservoir:
  """Keeps an example, or not, so that all seen are kept equally likely.

  The n-th takes place j, uniform in 0, ..., n - 1, if there is such a place;
  as long as there is room, it takes the next (Vitter 1985, algorithm R).
  """
  capacity = jax.tree.leaves(memory.items)[0].shape[0]
  drawn = jax.random.randint(rng, (), 0, memory.seen + 1)
  place = jnp.where(memory.seen < capacity, memory.seen, drawn)
  items = jax.tree.map(
    lambda xs, x: xs.at[place].set(x, mode="drop"), memory.items, example
  )
  return Reservoir(items, memory.seen + 1)


def draw(memory: Reservoir, number: int, rng: PRNGKey) -> Any:
  """Draws `[number, ...]` of those kept, uniformly, with replacement.

  Of an empty memory come zeros.
  """
  capacity = jax.tree.leaves(memory.items)[0].shape[0]
  kept = jnp.minimum(memory.seen, capacity)
  places = jax.random.randint(rng, (number,), 0, jnp.maximum(kept, 1))
  return jax.tree.map(lambda x: x[places], memory.items)
