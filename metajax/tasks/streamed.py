"""Few-shot tasks of images that are read from a disk when they are drawn."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax.tasks.drawing import Classes, filled
from metajax.tasks.few_shot import of_labels, places_drawn
from metajax.tasks.form import Form, Number
from metajax.tasks.reading_ahead import read_ahead
from metajax.tasks.stored_images import StoredImages
from metajax.types import Array, Episode, PRNGKey, Stream


def streamed_episodes(
  images: StoredImages,
  labels: ArrayLike,
  ways: Number,
  shots: Number,
  query_shots: Number,
  num_rotations: int = 1,
  *,
  small_classes: bool = False,
  workers: int = 0,
) -> Stream:
  """N-way K-shot tasks of labelled images on a disk.

  The task of a key is that of `labelled_episodes` with the same images in
  memory, bit for bit. The host reads the images in uint8. The device converts
  and turns them.

  Args:
    images: `[n, size, size, channels]`.
    labels: `[n]`, the class of each image: any integers or strings.
    ways: see `few_shot_episodes`, also for the next arguments.
    shots: support images per class.
    query_shots: query images per class.
    num_rotations: 1, 2 or 4.
    small_classes: whether classes may have too few images.
    workers: processes that read ahead; 0: threads of this process.

  Returns:
    A task family.

  Raises:
    ValueError: if the images do not suffice. The message names the argument.
  """
  like = jax.ShapeDtypeStruct(images.shape, np.uint8)
  order, data, form = of_labels(
    like, labels, ways, shots, query_shots, num_rotations, small_classes
  )
  sent = jax.tree.map(np.asarray, data)  # Processes get no arrays of JAX.
  read = functools.partial(_read, images, order)
  return Stream(
    jax.tree_util.Partial(
      functools.partial(_task, form=form, read=read, like=like), data
    ),
    functools.partial(
      _ahead, functools.partial(_read_task, sent, form, read), workers
    ),
    functools.partial(_finished, num_rotations),
  )


def _task(
  data: Classes, rng: PRNGKey, *, form: Form, read: Callable, like: Any
) -> Episode:
  """Reads the images of a task, in a compiled program by a callback."""
  if not isinstance(rng, jax.core.Tracer):
    # Numpy would round quotients in another way than JAX.
    found = jax.tree.map(jnp.asarray, _read_task(data, form, read, rng))
    return _finished(form.num_rotations, found, rng)
  drawn = places_drawn(data, rng, form=form)
  shapes = [
    jax.ShapeDtypeStruct((*x.inputs.rows.shape, *like.shape[1:]), np.uint8)
    for x in drawn
  ]
  images = jax.pure_callback(read, shapes, drawn, vmap_method="expand_dims")
  return _finished(form.num_rotations, (drawn, images), rng)


def _ahead(
  read_task: Callable[[PRNGKey], Any],
  workers: int,
  key_of: Callable[[int], PRNGKey],
  numbers: range,
) -> Iterator[Any]:
  # The settings that the draws depend on, for other threads and processes.
  config: Any = jax.config
  settings = config.jax_enable_x64, config.jax_threefry_partitionable
  make = functools.partial(_read_number, read_task, key_of, settings)
  return read_ahead(make, numbers, workers)


def _read_number(
  read_task: Callable[[PRNGKey], Any],
  key_of: Callable[[int], PRNGKey],
  settings: tuple[bool, bool],
  number: int,
) -> Any:
  wide, partitionable = settings
  with (
    jax.enable_x64(wide),
    jax.threefry_partitionable(partitionable),
    jax.default_device(_cpu()),
  ):
    return read_task(key_of(number))


def _cpu() -> jax.Device | None:
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS names others alone.
    return None


def _read_task(data: Classes, form: Form, read: Callable, rng: PRNGKey) -> Any:
  drawn = jax.device_get(_places(data, rng, form=form))
  return drawn, read(drawn)


_places = jax.jit(places_drawn, static_argnames="form")


def _read(
  images: StoredImages, order: np.ndarray, drawn: Episode
) -> list[np.ndarray]:
  """Returns the images of the support and of the query, zero where masked."""
  found = []
  for batch in drawn:
    rows = order[np.asarray(batch.inputs.rows)]
    if batch.mask is None:
      found.append(images[rows])
      continue
    real = np.asarray(batch.mask)
    whole = np.zeros((*rows.shape, *images.shape[1:]), np.uint8)
    whole[real] = images[rows[real]]
    found.append(whole)
  return found


def _finished(
  num_rotations: int, data: tuple[Episode, list[Array]], rng: PRNGKey
) -> Episode:
  del rng
  pairs = zip(*data, strict=True)
  return Episode(*(filled(batch, x, num_rotations) for batch, x in pairs))
