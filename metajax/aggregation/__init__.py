"""Combines several models into one model or into one prediction.

A stack of models is a tree of parameters with a leading model axis.
`jax.vmap` over training runs returns such a tree.
"""

from metajax.aggregation.alignment import align_stack, match_units
from metajax.aggregation.discovery import unit_axes
from metajax.aggregation.interpolation import (
  LossBarrier,
  interpolate,
  loss_barrier,
)
from metajax.aggregation.predictions import (
  Gaussian,
  average_probabilities,
  log_pool,
  mixture_moments,
  posterior_weights,
  stacking_weights,
  weighted_vote,
)
from metajax.aggregation.running import (
  AverageState,
  AveragingState,
  RunningAverage,
  averaging,
  ema,
  recent,
  swa,
)
from metajax.aggregation.stacks import (
  check_stack,
  normalized_weights,
  stack_models,
)
from metajax.aggregation.statistics import refresh_statistics
from metajax.aggregation.task_vectors import (
  task_arithmetic,
  task_vectors,
  ties_vector,
)
from metajax.aggregation.units import UnitAxes, chain_axes, permute_units
from metajax.aggregation.weights import (
  fisher_average,
  fisher_diagonal,
  greedy_soup,
  pseudo_gradient,
  weighted_average,
)

__all__ = [
  "AverageState",
  "AveragingState",
  "Gaussian",
  "LossBarrier",
  "RunningAverage",
  "UnitAxes",
  "align_stack",
  "average_probabilities",
  "chain_axes",
  "averaging",
  "check_stack",
  "ema",
  "fisher_average",
  "fisher_diagonal",
  "greedy_soup",
  "interpolate",
  "log_pool",
  "loss_barrier",
  "match_units",
  "mixture_moments",
  "normalized_weights",
  "permute_units",
  "posterior_weights",
  "pseudo_gradient",
  "recent",
  "refresh_statistics",
  "stack_models",
  "stacking_weights",
  "swa",
  "task_arithmetic",
  "task_vectors",
  "ties_vector",
  "unit_axes",
  "weighted_average",
  "weighted_vote",
]
