"""Adam with learned step sizes, schedules and decays."""

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
from metajax.numerics import check_number, wide
from metajax.types import Array, Params


def learned_adam(
  params: Params,
  step_size: float,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  eps_root: float = 1e-16,
  each: Each = "leaf",
  times: Sequence[int] = (0,),
) -> LearnedOptimizer:
  """Builds Adam with a step size and decays of each leaf or element.

  ::

    m_t = b1 m_{t-1} + (1 - b1) g_t,  v_t = b2 v_{t-1} + (1 - b2) g_t^2
    m = m_t / (1 - b1^t),  v = v_t / (1 - b2^t)
    theta_t = theta_{t-1} - s(t) m / (sqrt(v + eps_root) + eps)

  It starts as `optax.adam`. The momenta are in float32 at least, since squares
  of half precision overflow or become 0. The learned parameters are
  `{"log_step_size", "logit_b1", "logit_b2"}`, all unconstrained.

  Args:
    params: see `learned_sgd`.
    step_size: see `learned_sgd`.
    b1: where all decays of the momentum start, between 0 and 1.
    b2: where all decays of the second moment start, between 0 and 1.
    eps: not learned, at least 0.
    eps_root: not learned. It must be positive, because the derivative at zero
      gradients is NaN without it.
    each: see `learned_sgd`.
    times: see `learned_sgd`.

  Raises:
    ValueError: see `learned_sgd`.

  References:
    Kingma and Ba, `Adam: A Method for Stochastic Optimization
    <https://arxiv.org/abs/1412.6980>`_, 2015, algorithm 1.
  """
  check_number("b1", b1, above=0, below=1)
  check_number("b2", b2, above=0, below=1)
  check_number("eps", eps, at_least=0)
  check_number("eps_root", eps_root, above=0)
  start = start_of(params, step_size, each, times)
  logits = {"logit_b1": logit(b1), "logit_b2": logit(b2)}

  def optimizer(theta: Params) -> optax.GradientTransformation:
    def init(params: Params) -> MomentumState:
      first, second = (zeros_like(params, theta) for _ in range(2))
      return MomentumState(jnp.int32(0), first, second)

    def update(
      grads: Params, state: MomentumState, params: Params | None = None
    ) -> tuple[Params, MomentumState]:
      del params
      count = optax.safe_increment(state.steps)
      decay1, decay2 = (theta[name] for name in logits)
      first = jax.tree.map(_averaged, decay1, state.first, grads)
      squares = jax.tree.map(lambda g: jnp.square(wide(g)), grads)
      second = jax.tree.map(_averaged, decay2, state.second, squares)

      def step(
        g: Array, m: Array, v: Array, b1: Array, b2: Array, raw: Array
      ) -> Array:
        m, v = m / _share(b1, count), v / _share(b2, count)
        rate = step_size_at(raw, state.steps, times)
        return (-rate * m / (jnp.sqrt(v + eps_root) + eps)).astype(g.dtype)

      rates = theta["log_step_size"]
      updates = jax.tree.map(step, grads, first, second, decay1, decay2, rates)
      first, second = (
        cast_like(first, state.first),
        cast_like(second, state.second),
      )
      return updates, MomentumState(count, first, second)

    return optax.GradientTransformation(init, update)

  return LearnedOptimizer(start(logits), optimizer)


def _averaged(raw: Array, old: Array, new: Array) -> Array:
  """Averages with the decay b, whose logit is `raw`."""
  # Not 1 - b, which is 0 for a b that is 1 up to rounding.
  return jax.nn.sigmoid(raw) * old + jax.nn.sigmoid(-raw) * new


def _share(raw: Array, count: Array) -> Array:
  """Returns 1 - b^count, without cancellation."""
  return -jnp.expm1(count * jax.nn.log_sigmoid(raw))
