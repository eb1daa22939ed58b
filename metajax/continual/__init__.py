"""Continual learning: a learner sees a stream of tasks, each example once.

The algorithms are Meta-Experience Replay and its baselines.
"""

from metajax.continual.learners import (
  ContinualLearner,
  elastic_weights,
  meta_experience_replay,
  online,
  replayed,
)
from metajax.continual.reservoir import Reservoir, add, draw, reservoir
from metajax.continual.streams import (
  Stream,
  accuracies_over_stream,
  permuted,
  rotated,
)

__all__ = [
  "ContinualLearner",
  "Reservoir",
  "Stream",
  "accuracies_over_stream",
  "add",
  "draw",
  "elastic_weights",
  "meta_experience_replay",
  "online",
  "permuted",
  "replayed",
  "reservoir",
  "rotated",
]
