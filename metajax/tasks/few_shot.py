"""Few-shot classification of examples that lie on the device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax.tasks.drawing import (
  Classes,
  episode_of,
  places_of,
  sample_distinct,
)
from metajax.tasks.form import Form, Number, checked_arrays, form_of
from metajax.types import Array, Episode, PRNGKey, TaskFamily


def few_shot_episodes(
  images: Any,
  ways: Number,
  shots: Number,
  query_shots: Number,
  num_rotations: int = 1,
  counts: ArrayLike | None = None,
  *,
  small_classes: bool = False,
) -> TaskFamily:
  """N-way K-shot tasks drawn from a set of classes.

  A task has `ways` different classes in random order. The label of a class is
  its place in this order. Each class has `shots` support examples and
  `query_shots` query examples, all different. Support and query are shuffled,
  each by itself. With rotations, a class turned by r * 90 degrees is a class of
  its own.

  A number `(low, high)` is drawn anew for each task, uniformly from low to
  high. The arrays then have the largest size, and a mask tells which examples
  are real (see `Batch`). The other examples are zeros with label 0.

  Args:
    images: numpy or jax array `[classes, examples, ...]` of images, feature
      vectors or any other inputs; or a tree of such arrays.
    ways: N, classes per task, or `(low, high)`.
    shots: K, support examples per class, or `(low, high)`.
    query_shots: query examples per class, or `(low, high)`.
    num_rotations: 1 (none), 2 (0 and 90 degrees) or 4. More than 1 needs images
      `[classes, examples, size, size, channels]`.
    counts: int `[classes]`, the number of examples of each class, which come
      first in its row; None: all rows are full.
    small_classes: whether a class may have fewer examples than a task needs,
      but at least two. Such a class fills the support first, but keeps at least
      one example for the query. Missing examples are masked.

  Returns:
    A task family that carries the arrays as arguments. Inputs are `[n, ...]`:
    uint8 become float32 in [0, 1], other dtypes do not change. Targets are
    int32 `[n]`.

  Raises:
    ValueError: if the arrays do not suffice. The message names the argument.

  References:
    Vinyals et al., `Matching Networks for One Shot Learning
    <https://arxiv.org/abs/1606.04080>`_, 2016, section 2.2.
    Triantafillou et al., `Meta-Dataset: A Dataset of Datasets for Learning to
    Learn from Few Examples <https://arxiv.org/abs/1903.03096>`_, 2019, section
    3.2, for numbers that vary.
  """
  data, form = of_classes(
    images, ways, shots, query_shots, num_rotations, counts, small_classes
  )
  return _family(data, form)


def labelled_episodes(
  inputs: Any,
  labels: ArrayLike,
  ways: Number,
  shots: Number,
  query_shots: Number,
  num_rotations: int = 1,
  *,
  small_classes: bool = False,
) -> TaskFamily:
  """N-way K-shot tasks drawn from labelled examples, `X, y`.

  The tasks are those of `few_shot_episodes`. Classes may differ in size. Each
  example is stored once.

  Args:
    inputs: numpy or jax array `[n, ...]`, or a tree of such arrays.
    labels: `[n]`, the class of each example: any integers or strings.
    ways: see `few_shot_episodes`, also for the next arguments.
    shots: support examples per class.
    query_shots: query examples per class.
    num_rotations: 1, 2 or 4.
    small_classes: whether classes may have too few examples.

  Returns:
    A task family like that of `few_shot_episodes`.

  Raises:
    ValueError: if the examples do not suffice. The message names the argument.
  """
  arrays = checked_arrays(inputs, "inputs", "[n, ...]", 1)
  order, data, form = of_labels(
    arrays, labels, ways, shots, query_shots, num_rotations, small_classes
  )
  if np.any(order[1:] < order[:-1]):
    arrays = jax.tree.map(lambda x: x[order], arrays)
  return _family(
    data._replace(examples=jax.tree.map(jnp.asarray, arrays)), form
  )


def of_labels(
  arrays: Any,
  labels: ArrayLike,
  ways: Number,
  shots: Number,
  query_shots: Number,
  num_rotations: int,
  small_classes: bool,
) -> tuple[np.ndarray, Classes, Form]:
  """Checks the arguments of `labelled_episodes`.

  Returns:
    The order `[n]` that sorts the examples by class, the sizes and first rows
    of the sorted classes, without examples, and the form.
  """
  names = np.asarray(labels)
  if names.dtype == object:  # For example strings from a table.
    # NaN would become the class "nan".
    is_nan = [isinstance(x, float) and x != x for x in names.ravel()]
    missing = np.flatnonzero(is_nan)
    if missing.size:
      raise ValueError(
        f"labels: missing for {missing.size} of {names.size} examples, such as "
        f"{missing[0]}; leave them out."
      )
    names = np.asarray(names.tolist())
  num_examples = jax.tree.leaves(arrays)[0].shape[0]
  if names.shape != (num_examples,) or names.dtype.kind not in "biuUS":
    raise ValueError(
      f"labels: {names.dtype} {names.shape} given, must be integers or strings "
      f"[{num_examples}], one for each example."
    )
  found, classes = np.unique(names, return_inverse=True)
  sizes = np.bincount(classes, minlength=len(found))
  form = form_of(
    arrays,
    num_examples=sizes,
    ways=ways,
    shots=shots,
    query_shots=query_shots,
    num_rotations=num_rotations,
    small_classes=small_classes,
    axes="[n, size, size, channels]",
  )
  starts = np.cumsum(sizes) - sizes
  numbers = [jnp.asarray(x, jnp.int32) for x in (sizes, starts)]
  return np.argsort(classes, kind="stable"), Classes(None, *numbers), form


def drawn_classes(rng: PRNGKey, num_classes: int, ways: int) -> Array:
  """Returns the class of each label in the task that a key draws.

  It holds for `few_shot_episodes` and `labelled_episodes`, and for families
  that change the examples only, such as `standardized`.

  Args:
    rng: the key of the task.
    num_classes: the number of classes, times that of rotations. Class c turned
      r times is class `c * num_rotations + r`.
    ways: the (largest) number of classes of a task.

  Returns:
    int32 `[ways]`.
  """
  return sample_distinct(jax.random.split(rng, 4)[0], num_classes, ways)


def of_classes(
  images: Any,
  ways: Number,
  shots: Number,
  query_shots: Number,
  num_rotations: int,
  counts: ArrayLike | None = None,
  small_classes: bool = False,
) -> tuple[Classes, Form]:
  """Checks the arguments of `few_shot_episodes` and returns data and form."""
  arrays = checked_arrays(images, "images", "[classes, examples, ...]", 2)
  num_classes, room = jax.tree.leaves(arrays)[0].shape[:2]
  sizes = np.full(num_classes, room) if counts is None else np.asarray(counts)
  if (
    sizes.shape != (num_classes,)
    or sizes.dtype.kind not in "iu"
    or np.any((sizes < 0) | (sizes > room))
  ):
    raise ValueError(
      f"counts: {sizes.dtype} {sizes.shape} given, must be one integer of at "
      f"most {room} examples for each of the {num_classes} classes."
    )
  form = form_of(
    arrays,
    num_examples=sizes,
    ways=ways,
    shots=shots,
    query_shots=query_shots,
    num_rotations=num_rotations,
    small_classes=small_classes,
    axes="[classes, examples, size, size, channels]",
  )
  numbers = None if counts is None else jnp.asarray(counts, jnp.int32)
  data = Classes(jax.tree.map(jnp.asarray, arrays), numbers)
  return data, form._replace(most=room)


def places_drawn(data: Classes, rng: PRNGKey, *, form: Form) -> Episode:
  """Draws the places of the examples that the families here draw."""
  return places_of(data, form, *_classes(rng, form))


def _family(data: Classes, form: Form) -> TaskFamily:
  sample = functools.partial(_sample_episode, form=form)
  return jax.tree_util.Partial(sample, data)


def _sample_episode(data: Classes, rng: PRNGKey, *, form: Form) -> Episode:
  return episode_of(data, form, *_classes(rng, form))


def _classes(
  rng: PRNGKey, form: Form
) -> tuple[Array, Array, list[PRNGKey], PRNGKey]:
  """Draws the classes and turns of a task, and returns keys for the rest."""
  _, *keys = jax.random.split(rng, 4)
  num_classes = form.num_classes * form.num_rotations
  drawn = drawn_classes(rng, num_classes, form.ways[1])
  classes, turns = drawn // form.num_rotations, drawn % form.num_rotations
  # `split` above used the numbers 0 to 3.
  return classes, turns, keys, jax.random.fold_in(rng, 4)
