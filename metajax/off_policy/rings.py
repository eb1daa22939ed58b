"""What PEARL keeps of each training task: a ring, and its newest trial.

flashbax has no place here. A batch that it adds is whole, but episodes that end
early are not, and each task has its own number of transitions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.off_policy.transitions import Episodes, Transition
from metajax.types import Array, PRNGKey


class Rings(NamedTuple):
  """The experience of N training tasks.

  Attributes:
    steps: `[N, capacity]`, the last transitions of each task.
    written: `[N]` int32, how many there have been.
    newest: `[N, K, T]`, the newest trial of each task, for its context.
  """

  steps: Transition
  written: Array
  newest: Episodes


def empty_rings(capacity: int, newest: Episodes) -> Rings:
  """Returns rings without transitions, for trials like `newest` `[N, K, T]`."""
  num_tasks = newest.mask.shape[0]

  def ring(x: Array) -> Array:
    return jnp.zeros((num_tasks, capacity, *x.shape[3:]), x.dtype)

  written = jnp.zeros(num_tasks, jnp.int32)
  return Rings(jax.tree.map(ring, newest.steps), written, newest)


def store(rings: Rings, places: Array, trials: Episodes) -> Rings:
  """Stores trials `[n, K, T]` of the different tasks `places`, `[n]`.

  Transitions that are not real are left out. A ring must hold a whole trial.
  """
  flat = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), trials)
  capacity = rings.steps.reward.shape[1]
  order = jnp.cumsum(flat.mask, 1) - 1
  slot = (rings.written[places, None] + order) % capacity
  slot = jnp.where(flat.mask, slot, capacity)  # Which is dropped.

  def put(ring: Array, x: Array) -> Array:
    return ring.at[places[:, None], slot].set(x, mode="drop")

  return Rings(
    jax.tree.map(put, rings.steps, flat.steps),
    rings.written.at[places].add(flat.mask.sum(1)),
    jax.tree.map(lambda all, x: all.at[places].set(x), rings.newest, trials),
  )


def draw_batch(
  rings: Rings, place: Array, rng: PRNGKey, size: int
) -> Transition:
  """Draws transitions of one task, uniformly with replacement, `[size]`."""
  capacity = rings.steps.reward.shape[1]
  filled = jnp.minimum(rings.written[place], capacity)
  slot = jax.random.randint(rng, (size,), 0, filled)
  return jax.tree.map(lambda x: x[place, slot], rings.steps)


def draw_context(
  rings: Rings, place: Array, rng: PRNGKey, size: int | None
) -> tuple[Transition, Array]:
  """Draws a context of one task from the first k episodes of its newest trial.

  k is uniform in 1, ..., K, as the contexts at meta-test are the first episodes
  of a trial.

  Args:
    rings: what is kept.
    place: the number of the task, an int32 scalar.
    rng: a key.
    size: number of transitions, which are drawn uniformly with replacement.
      None: all.

  Returns:
    The transitions `[size]` or `[K * T]`, and their mask.
  """
  episodes_key, step_key = jax.random.split(rng)
  steps, mask = jax.tree.map(lambda x: x[place], rings.newest)
  num_episodes = mask.shape[0]
  k = jax.random.randint(episodes_key, (), 1, num_episodes + 1)
  mask = (mask & (jnp.arange(num_episodes) < k)[:, None]).ravel()
  steps = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
  if size is None:
    return steps, mask
  # The i-th real transition is the first place with i + 1 up to it.
  count = jnp.cumsum(mask)
  chosen = jax.random.randint(step_key, (size,), 0, count[-1])
  slot = jnp.searchsorted(count, chosen, side="right")
  return jax.tree.map(lambda x: x[slot], steps), jnp.ones(size, bool)
