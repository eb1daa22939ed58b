"""Batches of a data set with the same number of examples of every class."""

import jax
import jax.numpy as jnp

from metajax.batches import only_array
from metajax.numerics import check_counts
from metajax.tasks.drawing import pixels
from metajax.tasks.form import checked_arrays
from metajax.types import Array, Batch, Episode, PRNGKey, TaskFamily


def class_batches(examples: Array, per_class: int) -> TaskFamily:
  """Builds a task family whose queries are batches of ordinary classification.

  Args:
    examples: `[classes, examples, ...]`.
    per_class: examples of each class in a batch. Each batch draws them anew,
      without replacement.

  Returns:
    A task family. Support and query are the same batch `[per_class * classes,
    ...]`. Example i is of class `i % classes`. As in `few_shot_episodes`, uint8
    become float32 in [0, 1], and other dtypes do not change.

  Raises:
    ValueError: if a class has fewer examples, or for anything but one array.
  """
  examples = only_array(examples, "examples", "class_batches")
  axes = "[classes, examples, ...]"
  examples = checked_arrays(examples, "examples", axes, 2)
  if not 1 <= per_class <= examples.shape[1]:
    raise ValueError(
      f"per_class={per_class}: must be 1 to {examples.shape[1]}, the examples "
      "of a class."
    )

  check_counts(per_class=per_class)

  def sample(examples: Array, rng: PRNGKey) -> Episode:
    num_classes, num_examples = examples.shape[:2]
    order = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(
      jax.random.split(rng, num_classes)
    )[:, :per_class]
    chosen = examples[jnp.arange(num_classes)[:, None], order]
    inputs = chosen.swapaxes(0, 1).reshape(-1, *examples.shape[2:])
    labels = jnp.arange(len(inputs), dtype=jnp.int32) % num_classes
    batch = Batch(pixels(inputs), labels)
    return Episode(batch, batch)

  return jax.tree_util.Partial(sample, jnp.asarray(examples))
