"""An optimizer that is a small MLP on features of each parameter."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.learned_optimizers.coordinates import (
  flatten,
  safe_rsqrt,
  unflatten,
  unit_rms,
)
from metajax.learned_optimizers.protocol import LearnedOptimizer, check_params
from metajax.models.mlp import MLP
from metajax.numerics import check_counts, check_number
from metajax.types import Array, Model, Params, PRNGKey

TIMESCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)


class MLPState(NamedTuple):
  """The state of the MLP optimizer, for N parameters in one list.

  Attributes:
    steps: int32, the number of steps taken.
    momenta: `[N, decays]`, moving averages of the gradients.
    second: `[N]`, the moving average of squared gradients.
  """

  steps: Array
  momenta: Array
  second: Array


def mlp_optimizer(
  *,
  hidden: Sequence[int] = (16, 16),
  decays: Sequence[float] = (0.5, 0.9, 0.99, 0.999),
  second_decay: float = 0.999,
  step_size: float = 1e-3,
  magnitude_scale: float = 1e-3,
) -> LearnedOptimizer:
  """Builds an optimizer that applies one small MLP to each parameter.

  ::

    m_i = d_i m_i + (1 - d_i) g,   v = d v + (1 - d) g^2
    (a, b) = MLP([features(g, p, m, v), time(t)])
    p <- p - step_size a exp(magnitude_scale b)

  The features of a parameter p are g, p, every m_i, sqrt(v) and every m_i /
  sqrt(v). Each is divided by its root mean square over the tensor. Their signs
  and ratios matter, and the scale of the loss does not. The features of time
  are tanh(t / T - 1) for 11 timescales T from 1 to 10^5. The weights of the MLP
  are shared by all parameters of all tensors, so theta fits any network.

  This is the optimizer of Metz et al. 2019, and of `MLPLOpt` in their library
  learned_optimization, with other decays and with the second moment, as in Metz
  et al. 2020. Their library adds 1e-5 to the mean square; this adds 1e-20. So
  small gradients count here, too.

  Args:
    hidden: widths of the hidden layers.
    decays: the d_i, decays of the momenta, from 0 to below 1.
    second_decay: d, from 0 to below 1.
    step_size: positive. The initial a is of the order of 1.
    magnitude_scale: at least 0.

  Raises:
    ValueError: for a number out of range. The optimizer raises it without
      parameters, or if they are not real.

  References:
    Metz et al., `Understanding and correcting pathologies in the training of
    learned optimizers <https://arxiv.org/abs/1810.10180>`_, 2019.
    Metz et al., `Tasks, stability, architecture, and compute: Training more
    effective learned optimizers <https://arxiv.org/abs/2009.11243>`_, 2020.
  """
  for units in hidden:
    check_counts(hidden=units)
  check_number("decays", np.asarray(decays), at_least=0, below=1)
  check_number("second_decay", second_decay, at_least=0, below=1)
  check_number("step_size", step_size, above=0)
  check_number("magnitude_scale", magnitude_scale, at_least=0)
  net: Model = MLP(2, tuple(hidden))
  num_features = 3 + 2 * len(decays) + len(TIMESCALES)

  def init(rng: PRNGKey) -> Params:
    return net.init(rng, jnp.zeros((1, num_features)))

  def optimizer(theta: Params) -> optax.GradientTransformation:
    def init(params: Params) -> MLPState:
      flat = flatten(check_params("mlp_optimizer", params))
      momenta = jnp.zeros((flat.size, len(decays)), flat.dtype)
      return MLPState(jnp.int32(0), momenta, jnp.zeros_like(flat))

    def update(
      grads: Params, state: MLPState, params: Params | None = None
    ) -> tuple[Params, MLPState]:
      check_params("mlp_optimizer", params)
      g, p = flatten(grads), flatten(params)
      d = jnp.asarray(decays, g.dtype)
      momenta = d * state.momenta + (1 - d) * g[:, None]
      second = second_decay * state.second + (1 - second_decay) * g**2
      sizes = [np.size(x) for x in jax.tree.leaves(grads)]
      inputs = features(g, p, momenta, second, sizes)
      time = jnp.broadcast_to(
        time_features(state.steps, g.dtype), (g.size, len(TIMESCALES))
      )
      outputs = net.apply(theta, jnp.concatenate([inputs, time], 1))
      direction, magnitude = outputs[:, 0], outputs[:, 1]
      step = step_size * direction * jnp.exp(magnitude_scale * magnitude)
      count = optax.safe_increment(state.steps)
      momenta = momenta.astype(state.momenta.dtype)
      second = second.astype(state.second.dtype)
      return unflatten(-step, grads), MLPState(count, momenta, second)

    return optax.GradientTransformation(init, update)

  return LearnedOptimizer(init, optimizer)


def features(
  g: Array, p: Array, momenta: Array, second: Array, sizes: Sequence[int]
) -> Array:
  """Returns the features of N parameters, without those of time.

  Args:
    g: `[N]`, gradients.
    p: `[N]`, parameters.
    momenta: `[N, decays]`.
    second: `[N]`, averages of squared gradients.
    sizes: the number of parameters of each tensor, whose sum is N.

  Returns:
    `[N, 3 + 2 decays]`: g, p, momenta, sqrt(second), momenta / sqrt(second).
    Each has a root mean square of 1 over each tensor, or is 0.
  """
  inverse = safe_rsqrt(second)[:, None]
  deviation = second[:, None] * inverse
  columns = [g[:, None], p[:, None], momenta, deviation, momenta * inverse]
  return unit_rms(jnp.concatenate(columns, 1), sizes)


def time_features(count: Array, dtype: jnp.dtype = jnp.float32) -> Array:
  """Returns tanh(t / T - 1) for each timescale T, `[11]`."""
  return jnp.tanh(count.astype(dtype) / jnp.asarray(TIMESCALES, dtype) - 1)
