"""Functions for runs of several processes, each with its own devices.

All processes call the same functions in the same order. Only the first process
writes files other than checkpoints. With one process, these functions change
nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding


def is_main() -> bool:
  """Tells whether this process is the one that writes files."""
  return jax.process_index() == 0


def place(tree: Any, sharding: NamedSharding) -> Any:
  """Places arrays on devices, as `jax.device_put` does.

  Args:
    tree: a tree of arrays or keys. All processes must give the same.
    sharding: the sharding of all arrays. It may use devices of all processes.
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
  """Copies arrays, if replicated over processes, to a device of this one."""
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
  """Returns a whole array, even if other processes have parts of it."""
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def agree(first: int, largest: int) -> tuple[int, int]:
  """Returns `first` of the first process, and the maximum of all `largest`."""
  if jax.process_count() == 1:
    return first, largest
  everyone = multihost_utils.process_allgather(np.array([first, largest]))
  return int(everyone[0, 0]), int(everyone[:, 1].max())


def main_alone(action: Callable[[], None]) -> None:
  """Runs an action in the first process, while the other processes wait.

  Raises:
    ValueError: in every process, if the action raises a `ValueError`.
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
