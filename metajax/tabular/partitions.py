"""Random functions of a table that are constant in boxes or about centres."""

import jax
import jax.numpy as jnp

from metajax.tabular.draws import between, normals, uniforms, whole
from metajax.tabular.structural import standardized
from metajax.types import Array, PRNGKey

TREES, DEPTH = 4, 3
CENTRES = 3
FACTORS = 4


def tree_scores(rng: PRNGKey, features: Array, num_scores: int) -> Array:
  """Draws an ensemble of oblivious trees, and its values for each row.

  A tree has 3 splits, each of one feature at the value of a random row. All
  nodes of one depth have the same split. Leaves have normal values. Later
  trees weigh less, so that some tasks are those of a single tree.

  Args:
    rng: the key.
    features: `[rows, features]`.
    num_scores: how many values a leaf has.

  Returns:
    `[rows, num_scores]`, standardised.
  """
  rows, width = features.shape
  place_key, leaf_key = jax.random.split(rng)
  splits = TREES, DEPTH
  column, row, decay = uniforms(place_key, splits, splits, ())
  (values,) = normals(leaf_key, (TREES, 2**DEPTH, num_scores))
  columns, at = whole(column, 0, width - 1), whole(row, 0, rows - 1)
  above = features[:, columns] > features[at, columns]
  leaf = jnp.sum(above * 2 ** jnp.arange(DEPTH), axis=-1)  # [rows, trees]
  values *= (decay ** jnp.arange(TREES))[:, None, None]
  chosen = jax.nn.one_hot(leaf, 2**DEPTH).reshape(rows, -1)
  return standardized(chosen @ values.reshape(-1, num_scores))


def clusters(
  rng: PRNGKey, num_rows: int, num_features: int, num_classes: Array, most: int
) -> tuple[Array, Array]:
  """Draws rows about random centres, of which each is of one class.

  ::

    x = spread * relevance * centre + share * A e / 2 + (1 - share) * noise

  with 4 common factors e of the noise. A class has 1 to 3 centres. Classes have
  random probabilities.

  Args:
    rng: the key.
    num_rows: the number of rows.
    num_features: the number of columns.
    num_classes: the number of classes of the task.
    most: the most classes of any task.

  Returns:
    Features `[rows, features]` and classes `[rows]`.
  """
  uniform_key, normal_key = jax.random.split(rng)
  table = num_rows, num_features
  chance, count, which, relevance, scalars = uniforms(
    uniform_key, (num_rows, most), (most,), (num_rows,), (num_features,), (2,)
  )
  sizes, centres, loadings, factors, single = normals(
    normal_key,
    (most,),
    (most, CENTRES, num_features),
    (FACTORS, num_features),
    (num_rows, FACTORS),
    table,
  )
  gumbel = -jnp.log(-jnp.log(jnp.clip(chance, 1e-6, 1 - 1e-6)))
  used = jnp.arange(most) < num_classes
  labels = jnp.argmax(jnp.where(used, sizes + gumbel, -jnp.inf), axis=-1)
  centre = whole(which, 0, whole(count, 0, CENTRES - 1)[labels])
  spread = jnp.exp(between(scalars[0], -0.7, 2.0))
  place = spread * relevance * centres[labels, centre]
  noise = scalars[1] * factors @ loadings / 2 + (1 - scalars[1]) * single
  return standardized(place + noise), labels
