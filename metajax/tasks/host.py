"""Tasks that Python makes on the host: by numpy, a simulator, or from files."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.task_checks import check_batch
from metajax.types import Batch, Episode, PRNGKey, Stream


def host_tasks(draw: Callable[[np.random.Generator], Episode]) -> Stream:
  """Builds a task family from a Python function that is not compiled.

  The host calls the function for each task while the device computes the step
  before. The task of a key is `draw(numpy.random.default_rng(data of key))`, so
  that runs go on to the same bits, and evaluations see the same tasks, if the
  function draws from its generator alone.

  A Python generator of episodes needs one line: `host_tasks(lambda _:
  next(episodes))`. Its tasks are not those of a key: a run that goes on sees
  other tasks, and so does each evaluation. One more task than used is drawn at
  the start, for its shapes.

  Args:
    draw: `(numpy.random.Generator) -> Episode` of numpy arrays. All tasks have
      the same shapes and dtypes; pad, and give a `mask`, where their numbers of
      examples differ.

  Returns:
    A task family. Numbers of 64 bits become 32 bits, as in JAX.

  Raises:
    ValueError: if the function returns no `Episode` of two batches; in use, if
      a task has other shapes than the first.
  """
  if not callable(draw):
    raise ValueError(
      f"draw: a {type(draw).__name__} given, must be a function "
      "(numpy.random.Generator) -> Episode; of a Python generator it is "
      "lambda _: next(episodes)."
    )
  like = jax.tree.map(_shape, _drawn(draw, jax.random.key(0)))
  make = functools.partial(_made, draw, like)

  def task(rng: PRNGKey) -> Episode:
    if not isinstance(rng, jax.core.Tracer):
      return jax.tree.map(jnp.asarray, make(rng))
    return jax.pure_callback(make, like, _data(rng), vmap_method="sequential")

  def ahead(key_of: Callable[[int], PRNGKey], numbers: range) -> Iterator[Any]:
    # One after the other, since the function may not be safe in threads. JAX
    # does not wait for a step, so that the device computes at the same time.
    return (make(key_of(number)) for number in numbers)

  return Stream(task, ahead, _finished)


def _finished(episode: Episode, rng: PRNGKey) -> Episode:
  del rng
  return episode


def _made(
  draw: Callable[[np.random.Generator], Episode], like: Episode, key: Any
) -> Episode:
  episode = _drawn(draw, key)
  found = jax.tree.map(_shape, episode)
  if found != like:
    raise ValueError(
      f"draw: a task of {_described(found)} after one of {_described(like)}; "
      "all must have the same shapes and dtypes. Pad, and give a mask."
    )
  return episode


def _drawn(draw: Callable[[np.random.Generator], Episode], key: Any) -> Episode:
  episode = draw(np.random.default_rng(np.asarray(_data(key)).ravel()))
  if not isinstance(episode, Episode) or not all(
    isinstance(batch, Batch) for batch in episode
  ):
    raise ValueError(
      f"draw: returned a {type(episode).__name__}, must be Episode(support, "
      "query) of two metajax.Batch(inputs, targets)."
    )
  for name, batch in zip(Episode._fields, episode, strict=True):
    check_batch(f"draw: the {name}", batch)
  return jax.tree.map(_narrow, episode)


def _data(key: Any) -> Any:
  """Returns the uint32 numbers of a key, which may be raw."""
  if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
    return jax.random.key_data(key)
  return key


def _narrow(x: Any) -> np.ndarray:
  x = np.asarray(x)
  return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def _shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _described(tree: Any) -> str:
  return ", ".join(f"{x.dtype} {x.shape}" for x in jax.tree.leaves(tree))
