"""An optimizer that is a small LSTM on the gradients of each parameter."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from metajax.learned_optimizers.coordinates import flatten, unflatten
from metajax.learned_optimizers.protocol import LearnedOptimizer, check_params
from metajax.numerics import check_counts, check_number
from metajax.types import Array, Params, PRNGKey


class _Network(nn.Module):
  units: int
  layers: int

  @nn.compact
  def __call__(self, carries: tuple, x: Array) -> tuple[tuple, Array]:
    after = []
    for carry in carries:
      carry, x = nn.LSTMCell(self.units)(carry, x)
      after.append(carry)
    return tuple(after), nn.Dense(1)(x)[:, 0]


def lstm_optimizer(
  *,
  units: int = 20,
  layers: int = 2,
  step_size: float = 0.1,
  log_range: float = 10.0,
) -> LearnedOptimizer:
  """Builds an optimizer that applies one small LSTM to each parameter.

  ::

    hidden_t, a_t = LSTM(hidden_{t-1}, log_and_sign(g_t))
    theta_t = theta_{t-1} + step_size a_t

  The weights of the LSTM are shared by all parameters, and each parameter has a
  hidden state of its own. In the paper the gradients of the trained loss are
  constants of the meta-gradient; `inner_loop.minimize(first_order=True)` does
  this.

  Args:
    units: units of a layer, at least 1; 20 in the paper.
    layers: the number of LSTM layers, at least 1; 2 in the paper.
    step_size: the scale of the outputs, positive.
    log_range: p of `log_and_sign`, positive; 10 in the paper.

  Raises:
    ValueError: for a number out of range. The optimizer raises it if parameters
      are not real.

  References:
    Andrychowicz et al., `Learning to learn by gradient descent by gradient
    descent <https://arxiv.org/abs/1606.04474>`_, 2016, section 2.1, appendix A.
  """
  check_counts(units=units, layers=layers)
  check_number("step_size", step_size, above=0)
  check_number("log_range", log_range, above=0)
  net: Any = _Network(units, layers)

  def start(number: int, dtype: Any) -> tuple:
    # Two arrays, because programs may not be given one array twice to reuse.
    zeros = lambda: jnp.zeros((number, units), dtype)  # noqa: E731
    return tuple((zeros(), zeros()) for _ in range(layers))

  def init(rng: PRNGKey) -> Params:
    return net.init(rng, start(1, jnp.float32), jnp.zeros((1, 2)))

  def optimizer(theta: Params) -> optax.GradientTransformation:
    def init(params: Params) -> tuple:
      flat = flatten(check_params("lstm_optimizer", params))
      return start(flat.size, flat.dtype)

    def update(
      grads: Params, state: tuple, params: Params | None = None
    ) -> tuple[Params, tuple]:
      del params
      inputs = log_and_sign(flatten(grads), log_range)
      after, outputs = net.apply(theta, state, inputs)
      after = jax.tree.map(lambda x, y: x.astype(y.dtype), after, state)
      return unflatten(step_size * outputs, grads), after

    return optax.GradientTransformation(init, update)

  return LearnedOptimizer(init, optimizer)


def log_and_sign(g: Array, log_range: float = 10.0) -> Array:
  """Separates the magnitude and the sign of gradients of any scale.

  ::

    (log|g| / p, sign(g))   where |g| >= exp(-p)
    (-1, exp(p) g)          elsewhere

  Args:
    g: `[...]`, gradients.
    log_range: p, positive.

  Returns:
    `[..., 2]`.

  References:
    Andrychowicz et al., `Learning to learn by gradient descent by gradient
    descent <https://arxiv.org/abs/1606.04474>`_, 2016, appendix A.
  """
  size = jnp.abs(g)
  large = size >= jnp.exp(-log_range)
  # The logarithm of 0 would have a NaN derivative even where it is not chosen.
  logarithm = jnp.log(jnp.where(large, size, 1)) / log_range
  magnitude = jnp.where(large, logarithm, -1)
  sign = jnp.where(large, jnp.sign(g), jnp.exp(log_range) * g)
  return jnp.stack([magnitude, sign], -1)
