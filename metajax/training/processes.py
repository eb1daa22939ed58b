"""What differs where several processes run one program, each its devices.

Every process calls everything, in the same order; the first one alone writes
what is not a checkpoint. With one process all of this does nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding


def is_main() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def place(tree: Any, sharding: NamedSharding) -> Any:
  """Puts arrays where a sharding says, like `jax.device_put`.

  Args:
    tree: arrays, keys too, that are the same in all processes.
    sharding: of all of them, over devices of any process.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def put(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
      x.dtype, jax.dtypes.prng_key
    ):
      data = put(jax.random.key_data(x))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(
      whole.shape, sharding, lambda index: whole[index]
    )

  return jax.tree.map(put, tree)


def on_this_process(tree: Any) -> Any:
  """Copies what is replicated over all processes to a device of this one."""
  if jax.process_count() == 1:
    return tree

  def copy(x: jax.Array) -> jax.Array:
    if not x.is_fully_replicated:
      return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = copy(jax.random.key_data(x))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.numpy.asarray(np.asarray(x))

  return jax.tree.map(copy, tree)


def whole(x: jax.Array) -> np.ndarray:
  """Returns all of an array, of which other processes may have parts."""
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def agree(first: int, largest: int) -> tuple[int, int]:
  """Returns the first process's `first`, and the largest `largest` of all."""
  if jax.process_count() == 1:
    return first, largest
  everyone = multihost_utils.process_allgather(np.array([first, largest]))
  return int(everyone[0, 0]), int(everyone[:, 1].max())


def main_alone(action: Callable[[], None]) -> None:
  """Does something in the first process, for which the others wait.

  Raises:
    ValueError: in every process, if the action raises one.
  """
  error = None
  if is_main():
    try:
      action()
    except ValueError as raised:
      error = raised
  failed = agree(0, int(error is not None))[1]
  if error is not None:
    raise error
  if failed:
    raise ValueError("the first process has ended; see what it says.")
