"""The classes that a few-shot learner confuses most, and their picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.evaluation import evaluation_keys
from metajax.losses import accuracy
from metajax.runs import plots, rng_keys, scoring
from metajax.tasks.few_shot import drawn_classes
from metajax.tasks.image_files import Images
from metajax.types import Array, MetaLearner, Params, TaskFamily


class Pair(NamedTuple):
  """A class that is taken for another one.

  Attributes:
    asked: the class of the queries.
    taken_for: the predicted class.
    wrong: the number of queries that are predicted as `taken_for`.
    total: the number of queries in tasks that have both classes.
  """

  asked: int
  taken_for: int
  wrong: int
  total: int


def table(logits: Array, labels: Array) -> Array:
  """Counts the queries of a task by their label and by the predicted label.

  Queries without a prediction, whose logits have a NaN, are not counted.

  Args:
    logits: `[n, ways]`.
    labels: int `[n]`.

  Returns:
    float32 `[ways, ways]`.
  """
  accuracy(logits, labels)  # Checks the shapes.
  ways = logits.shape[-1]
  known = ~jnp.isnan(logits).any(-1)
  predicted = jnp.where(known, jnp.argmax(logits, axis=-1), -1)
  predicted = jax.nn.one_hot(predicted, ways)
  return jax.nn.one_hot(labels, ways).T @ predicted


def worst_pairs(
  tables: np.ndarray, classes: np.ndarray, number: int
) -> list[Pair]:
  """Returns the ordered pairs of classes that are confused most.

  The pairs are sorted by the lower bound of Wilson's 95% interval for the share
  of queries of class a that are taken for class b, in tasks that have both. A
  pair that was seen once therefore ranks below one that is confused often.

  Args:
    tables: `[tasks, ways, ways]`, from `table`.
    classes: int `[tasks, ways]`, the class of each label.
    number: the most pairs to return. Pairs without an error are left out.
  """
  num_classes, ways = int(classes.max()) + 1, classes.shape[1]
  pairs = classes[:, :, None] * num_classes + classes[:, None, :]
  off_diagonal = ~np.eye(ways, dtype=bool)
  totals = np.broadcast_to(tables.sum(-1, keepdims=True), tables.shape)
  found, place = np.unique(pairs[:, off_diagonal], return_inverse=True)
  place = place.ravel()
  wrong = np.bincount(place, tables[:, off_diagonal].ravel())
  total = np.bincount(place, totals[:, off_diagonal].ravel())
  bound = np.where(wrong > 0, _lower_bound(wrong, total), -1.0)
  best = np.argsort(-bound, kind="stable")[:number]
  return [
    Pair(*divmod(int(found[i]), num_classes), int(wrong[i]), int(total[i]))
    for i in best
    if wrong[i] > 0
  ]


def _lower_bound(wrong: np.ndarray, total: np.ndarray) -> np.ndarray:
  """Returns the lower end of Wilson's 95% interval of a share."""
  z, n = 1.96, np.maximum(total, 1)
  share = wrong / n
  spread = z * np.sqrt(share * (1 - share) / n + (z / n) ** 2 / 4)
  return (share + z**2 / (2 * n) - spread) / (1 + z**2 / n)


def draw(
  path: Path,
  learner: MetaLearner,
  params: Params,
  tasks: TaskFamily,
  images: Images,
  *,
  ways: int,
  num_tasks: int,
  num_rotations: int = 1,
  number: int = 6,
) -> list[Pair]:
  """Draws images of the pairs of classes that a learner confuses most.

  The tasks are the fixed test tasks of the run.

  Args:
    path: the PNG file.
    learner: a learner that predicts logits.
    params: its meta-parameters.
    tasks: test tasks of `images`, with a fixed number of classes.
    images: uint8 images with the names of their classes.
    ways: the number of classes of a task.
    num_tasks: the number of tasks.
    num_rotations: the number of quarter turns that make classes of their own.
    number: the most pairs to draw.

  Returns:
    The pairs. Class c turned r times is class `c * num_rotations + r`.
  """
  score = scoring.task_scorer(
    learner, tasks, {"table": table}, "test", num_tasks
  )
  keys = evaluation_keys(rng_keys.evaluation_key("test"), num_tasks)
  num_classes = len(images.names) * num_rotations

  @jax.jit
  @jax.vmap
  def classes_of(key: Array) -> Array:
    # The first half of an evaluation key draws the task, see `evaluator`.
    return drawn_classes(jax.random.split(key)[0], num_classes, ways)

  tables = score(params)["table"]
  pairs = worst_pairs(tables, np.asarray(classes_of(keys)), number)
  _draw(path, pairs, images, num_rotations)
  return pairs


def _draw(
  path: Path, pairs: Sequence[Pair], images: Images, num_rotations: int
) -> None:
  """Draws a row for each pair, with the class that is asked for on the left."""
  each = 4
  rows = max(len(pairs), 1)
  figure = plots.pyplot().figure(
    figsize=(8.0, 1.25 * rows + 0.4), layout="constrained"
  )
  parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
  for part, pair in zip(parts, pairs, strict=False):
    names = []
    # An empty column is between the two classes.
    grid = part.subplots(1, 2 * each + 1)
    for side, label in enumerate((pair.asked, pair.taken_for)):
      label, turn = divmod(label, num_rotations)
      name = images.names[label].replace("_", " ")
      names.append(name + (f", {90 * turn}°" if turn else ""))
      own = images.images[np.flatnonzero(images.labels == label)[:each]]
      for axes, image in zip(grid[(each + 1) * side :], own, strict=False):
        shown = np.rot90(image, turn)
        axes.imshow(np.broadcast_to(shown, (*shown.shape[:2], 3)))
    for axes in grid:
      axes.set_axis_off()
    part.suptitle(
      f"{names[0]} (left) taken for {names[1]} (right): {pair.wrong} of "
      f"{pair.total} queries",
      fontsize=9,
    )
  plots.save(figure, path)
