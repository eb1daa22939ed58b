"""Few-shot tasks whose characters all come from one alphabet."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.tasks.drawing import Classes, episode_of
from metajax.tasks.few_shot import of_classes
from metajax.tasks.form import Form, Number
from metajax.types import Array, Episode, PRNGKey, TaskFamily


def alphabet_episodes(
  images: Any,
  alphabets: Sequence[str],
  ways: Number,
  shots: Number,
  query_shots: Number,
  num_rotations: int = 1,
) -> TaskFamily:
  """N-way K-shot tasks whose classes are drawn within one alphabet.

  These tasks are harder than those of `few_shot_episodes`, because the
  characters of an alphabet have a common style. All characters of a task turn
  by the same angle. A turned alphabet counts as another alphabet. Alphabets
  with fewer than `ways` characters (its largest value, if `ways` varies) are
  left out. All others are equally likely.

  Args:
    images: see `few_shot_episodes`.
    alphabets: the alphabet of each class.
    ways: see `few_shot_episodes`, also for the next arguments.
    shots: support examples per class.
    query_shots: query examples per class.
    num_rotations: 1, 2 or 4.

  Returns:
    A task family like that of `few_shot_episodes`.

  Raises:
    ValueError: if the images do not suffice, naming the argument.

  References:
    Lake et al., `The Omniglot challenge: a 3-year progress report
    <https://arxiv.org/abs/1902.03477>`_, 2019.
  """
  data, form = of_classes(images, ways, shots, query_shots, num_rotations)
  if len(alphabets) != form.num_classes:
    raise ValueError(
      f"alphabets: {len(alphabets)} given, must be one for each of the "
      f"{form.num_classes} classes."
    )
  names, numbers = np.unique(np.asarray(alphabets), return_inverse=True)
  members = [np.flatnonzero(numbers == i) for i in range(len(names))]
  large = [m for m in members if len(m) >= form.ways[1]]
  if not large:
    raise ValueError(
      f"ways={ways}: must be at most {max(map(len, members))}, the number of "
      "characters of the largest alphabet."
    )
  # All rows have one length. Entries beyond an alphabet's size are never drawn.
  table = np.zeros((len(large), max(map(len, large))), np.int32)
  for row, classes in zip(table, large, strict=True):
    row[: len(classes)] = classes
  sizes = jnp.array([len(classes) for classes in large])
  sample = functools.partial(_sample_episode, form=form)
  return jax.tree_util.Partial(sample, data, jnp.asarray(table), sizes)


def _sample_episode(
  data: Classes, table: Array, sizes: Array, rng: PRNGKey, *, form: Form
) -> Episode:
  alphabet_key, turn_key, class_key, *keys = jax.random.split(rng, 6)
  alphabet = jax.random.randint(alphabet_key, (), 0, len(table))
  turn = jax.random.randint(turn_key, (), 0, form.num_rotations)
  # The classes are the first ones in a random order of the alphabet.
  order = jax.random.uniform(class_key, table.shape[1:])
  order = jnp.where(jnp.arange(len(order)) < sizes[alphabet], order, jnp.inf)
  ways = form.ways[1]
  classes = table[alphabet, jnp.argsort(order)[:ways]]
  # `split` above used the numbers 0 to 5.
  size_key = jax.random.fold_in(rng, 6)
  return episode_of(data, form, classes, jnp.full(ways, turn), keys, size_key)
