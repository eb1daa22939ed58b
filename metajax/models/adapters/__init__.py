"""Models of other libraries' modules, each in one line.

What they make is a `Model` with a `train`: weights as the library has them,
running statistics under `State` nodes, and a key for dropout and its like.
A library is imported when its adapter is used.
"""

from metajax.models.adapters.common import AdaptedModel, by_batch_statistics
from metajax.models.adapters.equinox import from_equinox
from metajax.models.adapters.haiku import from_haiku
from metajax.models.adapters.linen import from_linen
from metajax.models.adapters.nnx import from_nnx

__all__ = [
  "AdaptedModel",
  "by_batch_statistics",
  "from_equinox",
  "from_haiku",
  "from_linen",
  "from_nnx",
]
