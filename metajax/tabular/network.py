"""A transformer that reads a table by its rows and by its columns in turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.context.attention import KeysValues
from metajax.context.dense import (
  dense,
  init_dense,
  init_mlp,
  init_norm,
  mlp,
  norm,
)
from metajax.numerics import check_counts
from metajax.tabular import layers
from metajax.tabular.columns import CELL, Columns, encode, measure
from metajax.types import Array, Params, PRNGKey


class Memory(NamedTuple):
  """What a table's support leaves behind.

  Attributes:
    columns: the statistics of its columns.
    layers: `KeysValues` of each layer, `[n, features + 1, heads, c]`. Those of
      the last layer are of the targets alone, `[n, 1, heads, c]`.
    mask: `[n]` bool, True for real rows.
  """

  columns: Columns
  layers: list[KeysValues]
  mask: Array


class TableTransformer(NamedTuple):
  """Pure functions of the network.

  Attributes:
    init: `(rng) -> params`. They are for any number of rows and features.
    read: `(params, inputs [n, features], labels [n, classes], mask [n], names
      [features, 16]) -> Memory`. The labels are one-hot.
    ask: `(params, memory, inputs [m, features]) -> logits [m, classes]`. The
      cost is linear in m, and no row has an effect on another.
  """

  init: Callable[[PRNGKey], Params]
  read: Callable[..., Memory]
  ask: Callable[[Params, Memory, Array], Array]


def table_transformer(
  *,
  width: int = 96,
  hidden: int = 192,
  num_layers: int = 3,
  heads: int = 4,
  num_classes: int = 10,
) -> TableTransformer:
  """Builds a transformer of tables, without positions.

  Each cell is a token, and so is each row's target, to which a linear function
  of the sum of its row's cells is added. A layer is::

    x_rf = x_rf + attention over the cells of row r
    x_rf = x_rf + attention over the support's cells of column f
    x_rf = x_rf + dense(gelu(dense(x_rf)))

  with a normalisation before each part. Rows are not attended to unless they
  are of the support. The logits are a function of the last token of a row's
  target. No other token of the last layer is computed.

  The network has no positions. So the order of the rows has no effect, nor that
  of the features with their names, and it takes any number of both. Absent
  columns (`Columns.present`) have no effect, either. The names are random
  vectors, one for each column. Without them, standardised columns would look
  alike, and a row would be the set of its values.

  Args:
    width: width of the tokens.
    hidden: units of the dense layer of each layer, and of the last.
    num_layers: number of layers.
    heads: number of heads of each attention; must divide the width.
    num_classes: number of logits.

  Raises:
    ValueError: if `heads` does not divide `width`, or a size is less than 1.

  References:
    Hollmann et al., `Accurate predictions on small data with a tabular
    foundation model <https://doi.org/10.1038/s41586-024-08328-6>`_, 2025,
    figure 1.
    Pfefferle et al., `nanoTabPFN <https://arxiv.org/abs/2511.03634>`_, 2025:
    the sizes.
  """
  check_counts(width=width, hidden=hidden, num_layers=num_layers)
  check_counts(heads=heads, num_classes=num_classes)
  if width % heads:
    raise ValueError(
      f"width={width}, heads={heads}: heads must divide the width."
    )

  def init(rng: PRNGKey) -> Params:
    cell, label, asked, row, head, *rest = jax.random.split(rng, 5 + num_layers)
    return {
      "cell": init_mlp(cell, (CELL, width, width)),
      "label": init_dense(label, num_classes, width),
      "asked": jax.random.normal(asked, (width,)) * width**-0.5,
      "row": init_dense(row, width, width),
      "layers": [layers.init_layer(key, width, hidden) for key in rest],
      "norm": init_norm(width),
      "head": init_mlp(head, (width, hidden, num_classes)),
    }

  def tokens(params: Params, columns: Columns, inputs: Any, y: Array) -> Array:
    cells = mlp(params["cell"], encode(columns, inputs))
    present = columns.present[:, None]
    total = jnp.sum(cells, axis=1, where=present)
    y = y + dense(
      params["row"], total / jnp.sqrt(jnp.maximum(present.sum(), 1))
    )
    return jnp.concatenate([y[:, None], cells], axis=1)

  def cells_of(columns: Columns) -> Array:
    return jnp.concatenate([jnp.ones(1, bool), columns.present])

  def read(
    params: Params, inputs: Array, labels: Array, mask: Array, names: Array
  ) -> Memory:
    columns = measure(inputs, mask, names)
    present = cells_of(columns)
    x = tokens(params, columns, inputs, dense(params["label"], labels))
    *first, last = params["layers"]
    known = []
    for layer in first:
      x = layers.within_rows(layer, x, present, heads, len(present))
      known.append(layers.remember(layer, x, heads))
      x = layers.within_columns(layer, x, known[-1], mask, heads)
      x = layers.transform(layer, x)
    x = layers.within_rows(last, x, present, heads, 1)
    known.append(layers.remember(last, x, heads))
    return Memory(columns, known, mask)

  def ask(params: Params, memory: Memory, inputs: Array) -> Array:
    columns, known, mask = memory
    present = cells_of(columns)
    y = jnp.broadcast_to(params["asked"], (len(inputs), width))
    x = tokens(params, columns, inputs, y)
    for layer, past in zip(params["layers"], known, strict=True):
      # As many cells as the support has kept: the target alone in the last.
      x = layers.within_rows(layer, x, present, heads, past.keys.shape[1])
      x = layers.within_columns(layer, x, past, mask, heads)
      x = layers.transform(layer, x)
    return mlp(params["head"], norm(params["norm"], x[:, 0]))

  return TableTransformer(init, read, ask)
