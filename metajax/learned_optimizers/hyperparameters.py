"""SGD and Adam with learned step sizes, schedules and momenta."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import variables
from metajax.learned_optimizers.protocol import LearnedOptimizer, check_params
from metajax.numerics import check_number
from metajax.types import Array, Params, PRNGKey

Each = Literal["leaf", "element"]


class MomentumState(NamedTuple):
  """The state of both optimizers.

  Attributes:
    steps: int32, the number of steps taken.
    first: a tree like the parameters, the momentum; () of SGD without it.
    second: a tree like the parameters, the second moment; () of SGD.
  """

  steps: Array
  first: Params
  second: Params


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
  start = _start(params, step_size, each, times)
  logits = {"logit_momentum": _logit(momentum)} if momentum else {}

  def optimizer(theta: Params) -> optax.GradientTransformation:
    def init(params: Params) -> MomentumState:
      zeros = _zeros(params)
      return MomentumState(jnp.int32(0), zeros if momentum else (), ())

    def update(
      grads: Params, state: MomentumState, params: Params | None = None
    ) -> tuple[Params, MomentumState]:
      del params
      count, first, kept = state.steps, grads, state.first
      if momentum:
        decays = jax.tree.map(jax.nn.sigmoid, theta["logit_momentum"])
        first = jax.tree.map(lambda g, m, d: g + d * m, grads, kept, decays)
        kept = _as(first, kept)

      def step(g: Array, m: Array, raw: Array) -> Array:
        return (-_step_size(raw, count, times) * m).astype(g.dtype)

      updates = jax.tree.map(step, grads, first, theta["log_step_size"])
      return updates, MomentumState(optax.safe_increment(count), kept, ())

    return optax.GradientTransformation(init, update)

  return LearnedOptimizer(start(logits), optimizer)


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

  It starts as `optax.adam`. The learned parameters are `{"log_step_size",
  "logit_b1", "logit_b2"}`, all unconstrained.

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
  start = _start(params, step_size, each, times)
  logits = {"logit_b1": _logit(b1), "logit_b2": _logit(b2)}

  def optimizer(theta: Params) -> optax.GradientTransformation:
    def init(params: Params) -> MomentumState:
      return MomentumState(jnp.int32(0), _zeros(params), _zeros(params))

    def update(
      grads: Params, state: MomentumState, params: Params | None = None
    ) -> tuple[Params, MomentumState]:
      del params
      count = optax.safe_increment(state.steps)
      decay1, decay2 = (
        jax.tree.map(jax.nn.sigmoid, theta[name]) for name in logits
      )
      first = jax.tree.map(_averaged, decay1, state.first, grads)
      squares = jax.tree.map(jnp.square, grads)
      second = jax.tree.map(_averaged, decay2, state.second, squares)

      def step(
        g: Array, m: Array, v: Array, b1: Array, b2: Array, raw: Array
      ) -> Array:
        m, v = m / (1 - b1**count), v / (1 - b2**count)
        rate = _step_size(raw, state.steps, times)
        return (-rate * m / (jnp.sqrt(v + eps_root) + eps)).astype(g.dtype)

      rates = theta["log_step_size"]
      updates = jax.tree.map(step, grads, first, second, decay1, decay2, rates)
      first, second = _as(first, state.first), _as(second, state.second)
      return updates, MomentumState(count, first, second)

    return optax.GradientTransformation(init, update)

  return LearnedOptimizer(start(logits), optimizer)


def _start(
  params: Params, step_size: float, each: Each, times: Sequence[int]
) -> Callable[[dict[str, float]], Callable[[PRNGKey], Params]]:
  """Checks arguments, and returns `logits -> init`."""
  check_number("step_size", step_size, above=0)
  if each not in get_args(Each):
    raise ValueError(f"each={each!r}: must be one of {get_args(Each)}.")
  if not len(times) or min(times) < 0 or (np.diff(times) <= 0).any():
    raise ValueError(f"times={times}: must be steps from 0 that increase.")
  shapes = jax.eval_shape(lambda p: p, variables.weights(params))
  check_params("learned_sgd or learned_adam", shapes)

  def filled(value: float, *knots: int) -> Params:
    return jax.tree.map(
      lambda x: jnp.full(
        (*knots, *(x.shape if each == "element" else ())),
        value,
        jnp.promote_types(x.dtype, jnp.float32),
      ),
      shapes,
    )

  def of_logits(logits: dict[str, float]) -> Callable[[PRNGKey], Params]:
    def init(rng: PRNGKey) -> Params:
      del rng  # All of them start alike.
      theta = {name: filled(value) for name, value in logits.items()}
      return {
        "log_step_size": filled(math.log(step_size), len(times)),
        **theta,
      }

    return init

  return of_logits


def _step_size(raw: Array, count: Array, times: Sequence[int]) -> Array:
  """Interpolates the logarithms `[times, ...]` at a step."""
  at = jnp.asarray(times, raw.dtype)
  weights = jax.vmap(lambda one: jnp.interp(count.astype(raw.dtype), at, one))(
    jnp.eye(len(times), dtype=raw.dtype)
  )
  return jnp.exp(jnp.tensordot(weights, raw, 1))


def _logit(probability: float) -> float:
  return math.log(probability) - math.log1p(-probability)


def _averaged(decay: Array, old: Array, new: Array) -> Array:
  return decay * old + (1 - decay) * new


def _zeros(params: Params) -> Params:
  check_params("learned_sgd or learned_adam", params)
  return jax.tree.map(jnp.zeros_like, params)


def _as(tree: Any, like: Any) -> Any:
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)
