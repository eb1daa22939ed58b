"""What makes columns of numbers a table: categories, skews, gaps."""

import jax.numpy as jnp

from metajax.tabular.draws import between, uniforms, whole
from metajax.types import Array, PRNGKey

CATEGORIES = 10


def blemished(rng: PRNGKey, features: Array) -> Array:
  """Changes columns as those of real tables are.

  - Up to half of the columns become categorical: 2 to 10 categories, cut at the
    values of random rows, as integers in order or in random order.
  - Half of the others are skewed (`exp`), get heavy tails (`sinh`) or are
    squashed (`tanh`).
  - Some columns get the values of other rows, and so are noise.
  - A quarter of the tables have missing values, NaN.

  Args:
    rng: the key.
    features: `[rows, features]`, standardised. The rows are independent.
  """
  rows, width = features.shape
  row, names, cells, columns, scalars = uniforms(
    rng,
    (CATEGORIES - 1, width),
    (CATEGORIES, width),
    (rows, width),
    (6, width),
    (4,),
  )
  x = jnp.clip(between(columns[0], 0.3, 1.5) * features, -8, 8)
  at = whole(row, 0, rows - 1)
  cuts = jnp.take_along_axis(features, at, axis=0)
  count = whole(columns[1], 2, CATEGORIES)
  number = jnp.arange(CATEGORIES - 1)[:, None]
  cuts = jnp.where(number < count - 1, cuts, jnp.inf)
  category = (features[:, None] > cuts).sum(1)
  renamed = jnp.take_along_axis(jnp.argsort(names, axis=0), category, axis=0)
  category = jnp.where(columns[2] < 0.5, category, renamed)

  share = 0.5 * scalars[0]
  kind = (columns[3] - share) / (1 - share)
  numbers = jnp.select(
    [kind < 0.5, kind < 0.7, kind < 0.85],
    [features, jnp.exp(x), jnp.sinh(x)],
    jnp.tanh(x),
  )
  x = jnp.where(columns[3] < share, category.astype(x.dtype), numbers)
  # The rows are independent, so those of a neighbour tell nothing.
  noise = columns[4] < 0.4 * jnp.square(scalars[1])
  x = jnp.where(noise, jnp.roll(x, 1, axis=0), x)
  missing = jnp.where(scalars[2] < 0.25, 0.4 * scalars[3], 0)
  return jnp.where((cells < missing) & (columns[5] < 0.6), jnp.nan, x)
