"""Standardises the columns of a table by the rows of its support alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.types import Array

# Standardised values are clipped to this many deviations from the mean.
MOST = 5.0
# A column varies if its deviation is above this fraction of its largest number.
# Below it is the rounding of a mean in float32.
LEAST = 1e-6
# The random numbers by which the network tells columns apart.
NAME = 16
# The numbers by which `encode` describes a cell.
CELL = 3 + NAME


class Columns(NamedTuple):
  """What is known of the columns of a table, from its support.

  Attributes:
    mean: `[features]`.
    deviation: `[features]`; 0 for a column whose observed values are equal.
    ordered: `[features, n]`, the observed values in ascending order, then inf.
    observed: `[features]`, the number of observed values.
    present: `[features]` bool. A column is absent if it tells nothing: if it
      has no observed value, or equal values and none that is missing.
    names: `[features, 16]`, random numbers by which columns are told apart.
  """

  mean: Array
  deviation: Array
  ordered: Array
  observed: Array
  present: Array
  names: Array


def measure(inputs: Array, mask: Array, names: Array) -> Columns:
  """Measures the columns of a support.

  Args:
    inputs: `[n, features]`; NaN is a missing value.
    mask: `[n]` bool, True for real rows.
    names: `[features, 16]`, see `Columns`.
  """
  rows = mask[:, None]
  known = rows & ~jnp.isnan(inputs)
  values = jnp.where(known, inputs, 0)
  observed = known.sum(0)
  count = jnp.maximum(observed, 1)
  # In units of the largest number, so that no square overflows.
  largest = jnp.abs(values).max(0, initial=0)
  unit = jnp.where(largest > 0, largest, 1)
  scaled = values / unit
  mean = scaled.sum(0) / count
  squares = jnp.where(known, jnp.square(scaled - mean), 0)
  deviation = jnp.sqrt(squares.sum(0) / count)
  varies = deviation > LEAST
  incomplete = (rows & jnp.isnan(inputs)).any(0) & (observed > 0)
  ordered = jnp.sort(jnp.where(known, inputs, jnp.inf), axis=0).T
  return Columns(
    mean * unit,
    jnp.where(varies, deviation * unit, 0),
    ordered,
    observed,
    varies | incomplete,
    names,
  )


def encode(columns: Columns, inputs: Array) -> Array:
  """Describes each cell by three numbers and the name of its column.

  ::

    z = clip((x - mean) / deviation, -5, 5)
    r = 2 sqrt(3) (fraction of the support below x, half of those equal, - 1/2)
    m = 1 if x is missing, else 0

  z and r are 0 for a missing value, and in a column that does not vary. r has
  mean 0 and variance 1 over a support of different values.

  Args:
    columns: from `measure`.
    inputs: `[m, features]`; NaN is a missing value.

  Returns:
    `[m, features, 19]`.
  """
  missing = jnp.isnan(inputs)
  used = ~missing & (columns.deviation > 0)
  safe = jnp.where(columns.deviation > 0, columns.deviation, 1)
  values = jnp.where(used, inputs, columns.mean)
  z = jnp.clip(values / safe - columns.mean / safe, -MOST, MOST)
  place = jax.vmap(_places, (0, 1), 1)(columns.ordered, values)
  fraction = place / jnp.maximum(columns.observed, 1)
  r = 12**0.5 * (fraction.astype(z.dtype) - 0.5)
  z, r = (jnp.where(used, number, 0) for number in (z, r))
  numbers = jnp.stack([z, r, missing.astype(z.dtype)], axis=-1)
  names = jnp.broadcast_to(columns.names, (*z.shape, NAME))
  return jnp.concatenate([numbers, names.astype(z.dtype)], axis=-1)


def _places(ordered: Array, values: Array) -> Array:
  """Returns how many of the ordered are below, and half of the equal ones."""
  below = jnp.searchsorted(ordered, values, side="left")
  up_to = jnp.searchsorted(ordered, values, side="right")
  return (below + up_to) / 2
