"""Gradients through learning: of hyper-parameters, weights of data, losses."""

from metajax.bilevel.constraints import (
  Constraint,
  interval,
  positive,
  simplex,
)
from metajax.bilevel.gradients import Hypergradient, check, hypergradient
from metajax.bilevel.implicit import implicit, implicit_minimum
from metajax.bilevel.linear import conjugate_gradients, direct, neumann
from metajax.bilevel.solvers import (
  InnerState,
  Solution,
  Solver,
  forward,
  truncated,
  unrolled,
)

__all__ = [
  "Constraint",
  "Hypergradient",
  "InnerState",
  "Solution",
  "Solver",
  "check",
  "conjugate_gradients",
  "direct",
  "forward",
  "hypergradient",
  "implicit",
  "implicit_minimum",
  "interval",
  "neumann",
  "positive",
  "simplex",
  "truncated",
  "unrolled",
]
