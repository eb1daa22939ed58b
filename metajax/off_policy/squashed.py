"""The distribution of bounded actions: the tanh of a Gaussian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.numerics import wide
from metajax.policies.distributions import DiagonalGaussian
from metajax.types import Array, PRNGKey

# Beyond, atanh of a float32 would be infinite.
_NEAR_ONE = 1 - 1e-6


class TanhGaussian(NamedTuple):
  """Actions in (-1, 1)^d, the tanh of a Gaussian vector.

  ::

    a = tanh(u),   u ~ N(mean, exp(log_scale)^2)
    log p(a) = log N(u) - sum_i log(1 - a_i^2)

  Attributes:
    mean: `[..., d]`, of u.
    log_scale: `[..., d]`, logarithms of the standard deviations of u.
  """

  mean: Array
  log_scale: Array

  @property
  def mode(self) -> Array:
    """The action `tanh(mean)`, the median of each number, `[..., d]`."""
    return jnp.tanh(self.mean)

  def sample(self, rng: PRNGKey) -> Array:
    """Returns actions `[..., d]`."""
    return self.sample_with_log_prob(rng)[0]

  def sample_with_log_prob(self, rng: PRNGKey) -> tuple[Array, Array]:
    """Returns actions `[..., d]` and their log-densities `[...]`.

    Both have a derivative with respect to mean and log scale. It needs no
    inverse of the tanh, which float32 loses near 1 and -1.
    """
    noise = jax.random.normal(rng, self.mean.shape, self.mean.dtype)
    u = self.mean + jnp.exp(self.log_scale) * noise
    return jnp.tanh(u), self._log_density(u)

  def log_prob(self, actions: Array) -> Array:
    """Returns the log-densities `[...]` of actions `[..., d]`.

    Actions at the bounds count as the last ones within 1e-6 of them.
    """
    return self._log_density(
      jnp.arctanh(jnp.clip(wide(actions), -_NEAR_ONE, _NEAR_ONE))
    )

  def _log_density(self, u: Array) -> Array:
    u = wide(u)
    # log(1 - tanh(u)^2), without the difference of near numbers.
    slope = 2 * (np.log(2.0) - u - jax.nn.softplus(-2 * u))
    return DiagonalGaussian(*self).log_prob(u) - slope.sum(-1)
