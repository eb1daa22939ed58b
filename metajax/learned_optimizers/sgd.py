"""SGD with learned step sizes, schedules and momenta."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from metajax.learned_optimizers.hyperparameters import (
  Each,
  MomentumState,
  cast_like,
  logit,
  start_of,
  step_size_at,
  zeros_like,
)
from metajax.learned_optimizers.protocol import LearnedOptimizer
from metajax.numerics import check_number
from metajax.types import Array, Params


def learned_sgd(
  params: Params,
  step_size: float,
  *,
  momentum: float = 0.0,
  each: Each = "leaf",
  times: Sequence[int] = (0,),
) -> LearnedOptimizer:
  """Builds SGD with a step size and a momentum of each leaf or element.

  ::

    m_t = g_t + momentum m_{t-1}
    theta_t = theta_{t-1} - s(t) m_t

  The step size s(t) = exp(piecewise linear) has a learned value at each of
  `times`. It is geometric between them, and constant before the first and after
  the last. It starts as a constant, so the optimizer starts as `optax.sgd`. The
  learned parameters are `{"log_step_size", "logit_momentum"}`, both
  unconstrained.

  Args:
    params: the parameters to train, or their shapes.
    step_size: where all step sizes start, positive.
    momentum: where all momenta start, from 0 to below 1. 0: there are none, and
      none are learned.
    each: what has a step size and a momentum of its own: "leaf" or "element".
    times: increasing steps, from 0. Two of them learn a decay.

  Raises:
    ValueError: for a number out of range, unknown `each`, `times` that do not
      increase, or parameters that are not real.

  References:
    Maclaurin et al., `Gradient-based Hyperparameter Optimization through
    Reversible Learning <https://arxiv.org/abs/1502.03492>`_, 2015, section 3.
    Li et al., `Meta-SGD: Learning to Learn Quickly for Few-Shot Learning
    <https://arxiv.org/abs/1707.09835>`_, 2017.
  """
  check_number("momentum", momentum, at_least=0, below=1)
  start = start_of(params, step_size, each, times)
  logits = {"logit_momentum": logit(momentum)} if momentum else {}

  def optimizer(theta: Params) -> optax.GradientTransformation:
    def init(params: Params) -> MomentumState:
      zeros = zeros_like(params, theta)
      return MomentumState(jnp.int32(0), zeros if momentum else (), ())

    def update(
      grads: Params, state: MomentumState, params: Params | None = None
    ) -> tuple[Params, MomentumState]:
      del params
      count, first, kept = state.steps, grads, state.first
      if momentum:
        decays = jax.tree.map(jax.nn.sigmoid, theta["logit_momentum"])
        first = jax.tree.map(lambda g, m, d: g + d * m, grads, kept, decays)
        kept = cast_like(first, kept)

      def step(g: Array, m: Array, raw: Array) -> Array:
        return (-step_size_at(raw, count, times) * m).astype(g.dtype)

      updates = jax.tree.map(step, grads, first, theta["log_step_size"])
      return updates, MomentumState(optax.safe_increment(count), kept, ())

    return optax.GradientTransformation(init, update)

  return LearnedOptimizer(start(logits), optimizer)
