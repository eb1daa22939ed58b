"""metajax: meta-learning in JAX."""

from importlib import metadata

from metajax import inner_loop, learners, losses, tasks, training
from metajax.evaluation import Estimate, evaluate
from metajax.loaded import Loaded
from metajax.saved import load
from metajax.types import (
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Model,
  Splits,
  Stream,
  TaskFamily,
)

try:
  __version__ = metadata.version("metajax")
except metadata.PackageNotFoundError:  # Run from a checkout, not installed.
  __version__ = "unknown"

__all__ = [
  "Batch",
  "Episode",
  "Estimate",
  "Loaded",
  "LossFn",
  "MetaLearner",
  "Model",
  "Splits",
  "Stream",
  "TaskFamily",
  "evaluate",
  "inner_loop",
  "learners",
  "load",
  "losses",
  "tasks",
  "training",
]
