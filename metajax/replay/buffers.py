"""Where experience is kept: buffers of flashbax, one for each shard."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metajax.numerics import check_number
from metajax.training.mesh import task_mesh
from metajax.types import Array


class Replay(NamedTuple):
  """How experience is gathered and repeated.

  Attributes:
    actors: tasks played at once, on all devices together.
    length: actions of a stored sequence.
    period: actions from the start of one sequence to that of the next.
    capacity: sequences that are kept, on all devices together.
    batch: sequences of an update, likewise.
    ratio: how often a sequence is learned from, on average: updates after a
      trial are `ratio * new sequences / batch`, rounded, and at least one.
    epsilon: of the actor that explores most, see `epsilon_ladder`.
    alpha: of that ladder.
    priority_exponent: 0 samples uniformly.
    importance_exponent: 0 makes up for nothing.
    target_period: updates between two copies to the target network.
    shards: buffers that the sequences are split over, each drawn from alike. A
      step with so many is the same, to rounding, on any number of devices that
      divides it, and checkpoints restore there. None: one for each device.
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
    ValueError: for one that is out of its range.
  """
  check_number("ratio", replay.ratio, above=0)
  check_number("epsilon", replay.epsilon, at_least=0, at_most=1)
  check_number("alpha", replay.alpha, at_least=0)
  exponent = replay.priority_exponent
  check_number("priority_exponent", exponent, at_least=0, at_most=1)
  check_number("importance_exponent", replay.importance_exponent, at_least=0)
  check_number("target_period", replay.target_period, at_least=1)


class Layout(NamedTuple):
  """How devices hold shards, and shards what is kept.

  Attributes:
    mesh: the devices.
    num_shards: on all devices together.
    held: shards of a device.
    shares: what a shard has of each number.
  """

  mesh: Mesh
  num_shards: int
  held: int
  shares: dict[str, int]


def lay_out(mesh: Mesh | None, shards: int | None, **numbers: int) -> Layout:
  """Splits numbers over shards, and shards over devices.

  Args:
    mesh: the devices; None: `task_mesh` of the shards, or else of the first of
      the numbers.
    shards: how many; None: one for each device.
    **numbers: by name.

  Raises:
    ValueError: for what cannot be split evenly.
  """
  if shards is not None and shards < 1:
    raise ValueError(f"shards={shards}: must be 1 or more, or None.")
  if mesh is None:
    mesh = task_mesh(shards or next(iter(numbers.values())))
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
  shares = {name: value // num_shards for name, value in numbers.items()}
  return Layout(mesh, num_shards, held, shares)


def make_buffer(replay: Replay, num_shards: int = 1) -> Any:
  """Makes a shard of the buffer, a flashbax one of whole sequences."""
  import flashbax  # Of the extra `rl`, which flags are known without.

  return flashbax.make_prioritised_item_buffer(
    max_length=replay.capacity // num_shards,
    min_length=replay.batch // num_shards,
    sample_batch_size=replay.batch // num_shards,
    add_batches=True,
    priority_exponent=replay.priority_exponent,
    device=jax.default_backend(),
  )


def add(buffer: Any, stored: Any, items: Any, priorities: Array) -> Any:
  """Adds items `[new, ...]` with priorities of their own, `[new]`.

  flashbax gives new items the largest priority so far, as an integer. It is
  told that this is 0: a leaf of its tree is changed by sums, and a small number
  would lose its digits to a large one.
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
  """Sets priorities; those that are not finite would stay in the sums."""
  finite = jnp.where(jnp.isfinite(priorities), priorities, 0.0)
  return buffer.set_priorities(stored, places, finite + 1e-6)


def without_empty(sample: Any) -> Any:
  """Puts a sampled sequence in the place of those that are none.

  The sums of flashbax's tree are float32 and drift, so that a draw in thousands
  falls behind the last sequence, on one of probability 0.
  """
  exists = sample.probabilities > 0
  place = jnp.where(exists, jnp.arange(exists.size), exists.argmax())
  return jax.tree.map(lambda x: x[place], sample)


def for_each_shard(held: int, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Maps a function over leading axes of the shards that a device holds.

  Over one without `vmap`, which would make scattered writes of plain ones.
  """
  if held > 1:
    return jax.vmap(fn)

  def of_one(*arguments: Any) -> Any:
    one = fn(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], one)

  return of_one


def together(tree: Any) -> Any:
  """Makes one axis of the first two."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def apart(tree: Any, held: int) -> Any:
  """Makes two axes, `[held, ...]`, of the first."""
  return jax.tree.map(lambda x: x.reshape(held, -1, *x.shape[1:]), tree)
