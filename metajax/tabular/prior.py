"""A prior over tables, from which a tabular network learns."""

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts, check_number
from metajax.tabular.blemishes import blemished
from metajax.tabular.draws import uniforms, whole
from metajax.tabular.labels import classes_of, renumbered
from metajax.tabular.partitions import clusters, tree_scores
from metajax.tabular.structural import LAYERS, UNITS, causal_nodes
from metajax.tasks.form import Number, checked_bounds
from metajax.types import Array, Batch, Episode, PRNGKey, TaskFamily

# The shares of tables about clusters, and of those whose classes are of trees.
CLUSTERS, TREES = 0.35, 0.3


def tabular_prior(
  max_features: int = 10,
  *,
  shots: Number = (10, 80),
  query_shots: int = 24,
  max_classes: int = 10,
) -> TaskFamily:
  """Builds a family of random tables to classify, of mixed columns.

  A table is of one of three kinds:

  - A structural causal model (see `structural.causal_nodes`). The features are
    its causes, or random nodes of any layer. The classes are made of scores
    (see `labels.classes_of`), which are nodes of a later layer.
  - The same features, with the scores of a random ensemble of trees.
  - Rows about random centres, of which each is of one class.

  Columns are then changed: categories, skews, irrelevant columns, missing
  values (see `blemishes.blemished`). Classes are numbered at random. Half of
  the tables have 2 to 4 classes, and the others 2 to `max_classes`.

  Args:
    max_features: the columns of the arrays. Half of the tables have as many
      features, the others a number drawn from 1 to it. The other columns are
      absent: NaN in all rows.
    shots: rows of the support, or the least and most. If these differ, half of
      the tables have the most, and the support has a mask.
    query_shots: rows of the query. Those whose class the support lacks are
      masked out.
    max_classes: the most classes, 2 to 16.

  Returns:
    A task family of inputs `[rows, max_features]` and classes `[rows]`.

  Raises:
    ValueError: for an impossible number.

  References:
    Hollmann et al., `TabPFN <https://arxiv.org/abs/2207.01848>`_, 2023, section
    4: structural causal models and classes from intervals.
    Breejen et al., `Fine-tuned In-Context Learning Transformers are Excellent
    Tabular Data Classifiers <https://arxiv.org/abs/2405.13396>`_, 2024: trees.
  """
  check_number("max_features", max_features, at_least=1, at_most=2 * UNITS)
  check_counts(
    query_shots=query_shots, max_features=max_features, max_classes=max_classes
  )
  check_number("max_classes", max_classes, at_least=2, at_most=UNITS)
  least, most = checked_bounds("shots", shots, 1)
  rows = most + query_shots

  def sample(rng: PRNGKey) -> Episode:
    keys = jax.random.split(rng, 6)
    u, order = uniforms(keys[0], (8,), (max_classes,))
    few = whole(u[0], 2, min(4, max_classes))
    num_classes = jnp.where(u[1] < 0.5, few, whole(u[2], 2, max_classes))
    num_features = _most_or_fewer(u[3], 1, max_features)
    count = _most_or_fewer(u[4], least, most)

    features, scores = _caused(
      keys[1], rows, num_features, (max_features, max_classes)
    )
    trees = tree_scores(keys[2], features, max_classes)
    scores = jnp.where(u[5] < TREES, trees, scores)
    labels = classes_of(keys[3], scores, num_classes)
    other = clusters(keys[4], rows, max_features, num_classes, max_classes)
    features, labels = jax.tree.map(
      lambda x, y: jnp.where(u[6] < CLUSTERS, x, y), other, (features, labels)
    )
    features = blemished(keys[5], features)
    absent = jnp.arange(max_features) >= num_features
    features = jnp.where(absent, jnp.nan, features)
    labels = renumbered(order, labels, num_classes)

    real = jnp.arange(most) < count
    members = jax.nn.one_hot(labels[:most], max_classes, dtype=bool)
    seen = (members & real[:, None]).any(0)
    support = jnp.where(real[:, None], features[:most], 0)
    asked = labels[most:]
    return Episode(
      Batch(support, labels[:most], real),
      Batch(features[most:], asked, seen[asked]),
    )

  return sample


def _caused(
  rng: PRNGKey, rows: int, num_features: Array, most: tuple[int, int]
) -> tuple[Array, Array]:
  """Draws features `[rows, features]` and scores `[rows, classes]`."""
  number_key, model_key = jax.random.split(rng)
  places = LAYERS + 1, UNITS
  place, u = uniforms(number_key, places, (3,))
  num_causes = whole(u[0], 1, jnp.minimum(UNITS, num_features))
  nodes = causal_nodes(model_key, rows, num_causes)
  layer, unit = jnp.arange(LAYERS + 1)[:, None], jnp.arange(UNITS)
  # The causes that have an effect come first, or any nodes but the scores.
  causes = place + 2 * (layer > 0) + (unit >= num_causes)
  any_node = place + 2 * (layer == LAYERS)
  of_any = u[1] < 0.5
  order = jnp.argsort(jnp.where(of_any, any_node, causes).ravel())[: most[0]]
  features = jnp.moveaxis(nodes, 1, 0).reshape(rows, -1)[:, order]
  depth = jnp.where(of_any, LAYERS, whole(u[2], 1, LAYERS))
  return features, nodes[depth][:, : most[1]]


def _most_or_fewer(u: Array, least: int, most: int) -> Array:
  """Returns the most with probability 1/2, or a number from least to most."""
  return jnp.where(u < 0.5, most, whole(2 * u - 1, least, most))
