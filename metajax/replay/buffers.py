"""Replay buffers of flashbax, one for each shard."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metajax.numerics import check_counts, check_number
from metajax.training.mesh import task_mesh
from metajax.types import Array


class Replay(NamedTuple):
  """Configures how experience is gathered and replayed.

  Attributes:
    actors: number of tasks that are played at once, on all devices together.
    length: number of actions of a stored sequence.
    period: number of actions from the start of one sequence to the next start.
    capacity: number of sequences to keep, on all devices together.
    batch: number of sequences of an update, on all devices together.
    ratio: how often a sequence is learned from, on average. The number of
      updates after a trial is `ratio * new sequences / batch`, rounded, and at
      least one.
    epsilon: exploration of the actor that explores most, see `epsilon_ladder`.
    alpha: exponent of that ladder.
    priority_exponent: exponent of the priorities. 0 samples uniformly.
    importance_exponent: exponent of the importance weights. 0 gives equal
      weights.
    target_period: number of updates between two copies to the target network.
    shards: number of buffers over which the sequences are split. Each gives the
      same number of samples. A run with a given number of shards computes the
      same steps, up to rounding, on any number of devices that divides it.
      Checkpoints can be restored on these numbers of devices, too. None: one
      shard for each device.
  """

  actors: int = 64
  length: int = 40
  period: int = 20
  capacity: int = 10_000
  batch: int = 64
  ratio: float = 1.0
  epsilon: float = 0.4
  alpha: float = 7.0
  priority_exponent: float = 0.9
  importance_exponent: float = 0.6
  target_period: int = 100
  shards: int | None = None


def check_replay(replay: Replay) -> None:
  """Checks the numbers that do not depend on tasks or devices.

  Raises:
    ValueError: for a number that is out of its range.
  """
  check_number("ratio", replay.ratio, above=0)
  check_number("epsilon", replay.epsilon, at_least=0, at_most=1)
  check_number("alpha", replay.alpha, at_least=0)
  exponent = replay.priority_exponent
  check_number("priority_exponent", exponent, at_least=0, at_most=1)
  check_number("importance_exponent", replay.importance_exponent, at_least=0)
  check_counts(target_period=replay.target_period)


class Layout(NamedTuple):
  """The distribution of shards over devices.

  Attributes:
    mesh: the devices.
    num_shards: number of shards on all devices together.
    held: number of shards of one device.
    shares: the share of one shard of each number, by name.
  """

  mesh: Mesh
  num_shards: int
  held: int
  shares: dict[str, int]


def lay_out(mesh: Mesh | None, shards: int | None, **numbers: int) -> Layout:
  """Splits numbers over shards, and shards over devices.

  Args:
    mesh: the devices. If None, it is `task_mesh(shards)`, or `task_mesh` of the
      first of the numbers if `shards` is None, too.
    shards: number of shards. None: one for each device.
    **numbers: the numbers to split, by name.

  Raises:
    ValueError: if a number cannot be split evenly.
  """
  if shards is not None:
    check_counts(shards=shards)
  if mesh is None:
    name, number = next(iter(numbers.items()))
    mesh = task_mesh(shards or number, name="shards" if shards else name)
  num_shards = shards or mesh.size
  held, rest = divmod(num_shards, mesh.size)
  if rest:
    raise ValueError(
      f"shards={shards}: must be a positive multiple of {mesh.size} devices."
    )
  for name, value in numbers.items():
    if value < 1 or value % num_shards:
      raise ValueError(
        f"{name}={value}: must be a positive multiple of {num_shards} "
        + ("devices." if shards is None else "shards.")
      )
  check_counts(shards=num_shards, **numbers)
  shares = {name: value // num_shards for name, value in numbers.items()}
  return Layout(mesh, num_shards, held, shares)


def make_buffer(replay: Replay, num_shards: int = 1) -> Any:
  """Builds one shard of the buffer: a flashbax buffer of whole sequences."""
  # Imported here, because command lines must work without the extra `rl`.
  import flashbax

  return flashbax.make_prioritised_item_buffer(
    max_length=replay.capacity // num_shards,
    min_length=replay.batch // num_shards,
    sample_batch_size=replay.batch // num_shards,
    add_batches=True,
    priority_exponent=replay.priority_exponent,
    device=jax.default_backend(),
  )


def add(buffer: Any, stored: Any, items: Any, priorities: Array) -> Any:
  """Adds items `[new, ...]` with given priorities `[new]`.

  flashbax first gives new items the largest priority so far, as an integer.
  This function sets that largest priority to 0. The reason is that flashbax
  changes the leaves of its tree by sums, where a small priority would lose
  digits next to a large one.
  """
  capacity = jax.tree.leaves(stored.experience)[0].shape[1]
  places = (stored.current_index + jnp.arange(priorities.size)) % capacity
  tree = stored.sum_tree_state
  tree = tree.replace(
    max_recorded_priority=jnp.zeros_like(tree.max_recorded_priority)
  )
  stored = stored.replace(sum_tree_state=tree)
  return set_priorities(buffer, buffer.add(stored, items), places, priorities)


def set_priorities(
  buffer: Any, stored: Any, places: Array, priorities: Array
) -> Any:
  """Sets priorities. Non-finite ones become 0, or they would stay in sums."""
  finite = jnp.where(jnp.isfinite(priorities), priorities, 0.0)
  return buffer.set_priorities(stored, places, finite + 1e-6)


def without_empty(sample: Any) -> Any:
  """Replaces samples of empty places by the first valid sample.

  The sums in flashbax's tree are float32, and their rounding errors grow. About
  one draw in thousands therefore falls behind the last sequence, on an empty
  place of probability 0.
  """
  exists = sample.probabilities > 0
  place = jnp.where(exists, jnp.arange(exists.size), exists.argmax())
  return jax.tree.map(lambda x: x[place], sample)


def for_each_shard(held: int, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Maps a function over the leading shard axis of a device.

  A single shard is not vmapped, because `vmap` would turn plain writes into
  scatters.
  """
  if held > 1:
    return jax.vmap(fn)

  def of_one(*arguments: Any) -> Any:
    one = fn(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], one)

  return of_one


def together(tree: Any) -> Any:
  """Merges the first two axes into one."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def apart(tree: Any, held: int) -> Any:
  """Splits the first axis into two, `[held, ...]`."""
  return jax.tree.map(lambda x: x.reshape(held, -1, *x.shape[1:]), tree)
