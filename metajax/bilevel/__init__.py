"""Gradients through learning: of hyper-parameters, weights of data, losses."""

from metajax.bilevel.balancing import exact_gradient, influence_balancing
from metajax.bilevel.constraints import (
  Constraint,
  interval,
  positive,
  simplex,
)
from metajax.bilevel.descent import Descender, Descent, descent
from metajax.bilevel.estimators import (
  Estimator,
  backpropagation,
  of_steps,
  of_training,
  truncated_backpropagation,
)
from metajax.bilevel.evolution import (
  antithetic,
  evolution,
  truncated_evolution,
)
from metajax.bilevel.gradients import Hypergradient, check, hypergradient
from metajax.bilevel.implicit import implicit, implicit_minimum
from metajax.bilevel.inner import InnerState, Solution, Solver
from metajax.bilevel.learned_loss import LearnedLoss, learned_loss
from metajax.bilevel.linear import conjugate_gradients, direct, neumann
from metajax.bilevel.persistent import (
  noise_reuse_evolution,
  persistent_evolution,
)
from metajax.bilevel.search import search
from metajax.bilevel.solvers import forward, truncated, unrolled
from metajax.bilevel.weighting import (
  Weighting,
  equal_weights,
  learning_to_reweight,
  meta_weight_net,
  train_weighted,
)

__all__ = [
  "Constraint",
  "Descender",
  "Descent",
  "Estimator",
  "Hypergradient",
  "InnerState",
  "LearnedLoss",
  "Solution",
  "Solver",
  "Weighting",
  "antithetic",
  "backpropagation",
  "check",
  "conjugate_gradients",
  "descent",
  "direct",
  "equal_weights",
  "evolution",
  "exact_gradient",
  "forward",
  "hypergradient",
  "implicit",
  "implicit_minimum",
  "influence_balancing",
  "interval",
  "learned_loss",
  "learning_to_reweight",
  "meta_weight_net",
  "neumann",
  "noise_reuse_evolution",
  "of_steps",
  "of_training",
  "persistent_evolution",
  "positive",
  "search",
  "simplex",
  "train_weighted",
  "truncated",
  "truncated_backpropagation",
  "truncated_evolution",
  "unrolled",
]
