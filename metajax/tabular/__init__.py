"""Classification of small tables in context, by a prior-fitted network."""

from metajax.tabular.classifier import tabular_classifier
from metajax.tabular.columns import Columns, encode, measure
from metajax.tabular.network import (
  Memory,
  TableTransformer,
  table_transformer,
)
from metajax.tabular.prior import tabular_prior

__all__ = [
  "Columns",
  "Memory",
  "TableTransformer",
  "encode",
  "measure",
  "table_transformer",
  "tabular_classifier",
  "tabular_prior",
]
