"""Writes JSON that every parser accepts."""

import json
import math
from collections.abc import Mapping
from typing import Any


def legal_json(value: Any, indent: int | None = None) -> str:
  """Returns a value as JSON without literal NaN or infinity.

  They become the strings "nan", "inf" and "-inf", which `float` can read.
  Arrays and numbers of numpy and JAX are converted to those of Python.
  """

  def legal(x: Any) -> Any:
    if hasattr(x, "tolist"):
      x = x.tolist()
    if isinstance(x, float) and not math.isfinite(x):
      return repr(x)
    if isinstance(x, Mapping):
      return {k: legal(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
      return [legal(v) for v in x]
    return x

  return json.dumps(legal(value), indent=indent, allow_nan=False)
