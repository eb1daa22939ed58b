"""Steps of training on tasks that the host reads ahead."""

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from metajax.numerics import check_counts
from metajax.training import seeds
from metajax.training.state import (
  Step,
  Train,
  TrainState,
  counted,
  mean_metrics,
  no_metrics,
  traced_once,
)
from metajax.types import PRNGKey, Stream

# Steps whose data wait on the device or are in use there.
STEPS_AT_ONCE = 2
MOST_STEPS = 2**31 - 1


def mean_over_stream(
  step: Step, data_from: Callable[[int], Iterator[Any]], *arguments: Any
) -> Callable[[TrainState], tuple[Train, jax.stages.Compiled]]:
  """Builds a trainer's `compile` from a step whose data the host reads.

  It does what `mean_over_steps` does, but a call of the compiled program takes
  one step. While the device computes it, the host reads the next ones.

  Args:
    step: `(state, data, *arguments) -> (state, metrics)`.
    data_from: `(number) -> iterator` of the data of the step with this number
      and of the steps after it, in order.
    *arguments: the other arguments of the program.
  """
  step = traced_once(step)

  def advance(state, total, stuck, data, *arguments):
    return jax.lax.cond(
      stuck,
      lambda: (state, total, stuck),
      lambda: counted(step, state, total, data, *arguments),
    )

  def compile(state):
    number = int(state.step)  # Of the step that `data` begins with.
    data = data_from(number)
    first = next(data)
    data = itertools.chain([first], data)
    zeros = no_metrics(step, state, first, *arguments)
    everywhere = state.step.sharding
    start = jax.device_put((zeros, jnp.bool(False)), everywhere)
    jitted = jax.jit(advance, donate_argnums=0, out_shardings=everywhere)
    executable = jitted.lower(state, *start, first, *arguments).compile()

    def train(state, num_steps):
      nonlocal number, data
      check_counts(num_steps=num_steps)
      before = int(state.step)
      if number != before:
        number, data = before, data_from(before)
      (total, stuck), unfinished = start, deque[jax.Array]()
      for _ in range(num_steps):
        now = next(data)
        state, total, stuck = executable(state, total, stuck, now, *arguments)
        number += 1
        unfinished.append(stuck)
        if len(unfinished) == STEPS_AT_ONCE and unfinished.popleft():
          break
      return state, mean_metrics(total, state.step - before)

    return train, executable

  return compile


def read_ahead(
  stream: Stream,
  rng: PRNGKey,
  shape: tuple[int, ...],
  sharding: NamedSharding,
  step: int,
) -> Iterator[tuple[Any]]:
  """Reads what the tasks of a step, and of all steps after it, need.

  Args:
    stream: the task family.
    rng: the key from which all tasks are drawn, or keys `[S]`.
    shape: `(B,)`, the tasks of a step, or `(S, B)`.
    sharding: how their data lie on devices.
    step: the first step.

  Yields:
    The data of a step, with leading axes of this shape, as a tuple of one.
  """
  size = math.prod(shape)
  key_of = functools.partial(_key_of_task, keys_on_host(rng), shape[-1], size)
  numbers = range(step * size, MOST_STEPS * size)
  for data in blocks(stream.ahead(key_of, numbers), shape):
    yield (jax.device_put(data, sharding),)


def _key_of_task(
  key_of: Callable[[int], PRNGKey], meta_batch: int, size: int, number: int
) -> PRNGKey:
  """Returns the key of a task by its number among those of all steps."""
  step, place = divmod(number, size)
  seed, task = divmod(place, meta_batch)
  return _folded(key_of(seed), step, task)


@jax.jit
def _folded(rng: PRNGKey, step: int, task: int) -> PRNGKey:
  return jax.random.fold_in(jax.random.fold_in(rng, step), task)


def read(stream: Stream, rng: PRNGKey) -> tuple[Any]:
  """Reads what the task of a key needs, or those of keys `[S]`."""
  count = seeds.count(rng)
  data = stream.ahead(keys_on_host(rng), range(count or 1))
  return (next(blocks(data, () if count is None else (count,))),)


def blocks(tasks: Iterator[Any], shape: tuple[int, ...]) -> Iterator[Any]:
  """Stacks what tasks need, so that it has leading axes of this shape."""

  def stack(*arrays: np.ndarray) -> np.ndarray:
    whole = np.stack(arrays)
    return whole.reshape(*shape, *whole.shape[1:])

  while block := list(itertools.islice(tasks, math.prod(shape))):
    yield jax.tree.map(stack, *block)


def keys_on_host(keys: PRNGKey) -> Callable[[int], PRNGKey]:
  """Returns a picklable function `(place) -> key` of keys `[n]`, or of one."""
  if seeds.count(keys) is None:
    keys = keys[None]
  if not jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key):
    return functools.partial(_raw_key, np.asarray(keys))
  data = np.asarray(jax.random.key_data(keys))
  return functools.partial(_typed_key, data, str(jax.random.key_impl(keys)))


def _raw_key(data: np.ndarray, place: int) -> PRNGKey:
  return jnp.asarray(data[place])


def _typed_key(data: np.ndarray, impl: str, place: int) -> PRNGKey:
  return jax.random.wrap_key_data(jnp.asarray(data[place]), impl=impl)


def check_one_process() -> None:
  """Raises a `ValueError` in a run of several processes."""
  if jax.process_count() > 1:
    raise ValueError(
      "tasks: are read from a disk, which a run of several processes cannot "
      "do: give --nostream, or one process."
    )
