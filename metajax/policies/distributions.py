"""Distributions of actions: categorical, and a Gaussian for each number.

Densities and divergences are computed in float32 at least.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from metajax.numerics import wide
from metajax.types import Array, PRNGKey

_LOG_2PI = float(np.log(2 * np.pi))


class Distribution(Protocol):
  """A distribution of actions, with any leading axes `[...]`."""

  def sample(self, rng: PRNGKey) -> Array:
    """Returns actions, one for each leading place."""

  def mode(self) -> Array:
    """Returns the most probable actions."""

  def log_prob(self, actions: Array) -> Array:
    """Returns log-probabilities or log-densities, `[...]`."""

  def entropy(self) -> Array:
    """Returns entropies in nats, `[...]`."""

  def kl(self, other: Any) -> Array:
    """Returns the divergences `KL(self || other)` in nats, `[...]`."""


class Categorical(NamedTuple):
  """Actions 0, 1, ..., n - 1.

  Attributes:
    logits: `[..., n]`. A logit of -inf excludes its action.
  """

  logits: Array

  def sample(self, rng: PRNGKey) -> Array:
    """Returns actions, int32 `[...]`."""
    return jax.random.categorical(rng, self.logits).astype(jnp.int32)

  def mode(self) -> Array:
    """Returns the first of the most probable actions, int32 `[...]`."""
    return self.logits.argmax(-1).astype(jnp.int32)

  def log_prob(self, actions: Array) -> Array:
    """Returns the log-probabilities of int32 actions `[...]`."""
    return jnp.take_along_axis(self._log(), actions[..., None], -1)[..., 0]

  def entropy(self) -> Array:
    """Returns `-sum_a p_a log p_a`."""
    log_p = self._log()
    return -_times(jnp.exp(log_p), log_p).sum(-1)

  def kl(self, other: "Categorical") -> Array:
    """Returns `sum_a p_a (log p_a - log q_a)`."""
    log_p, log_q = self._log(), other._log()
    p = jnp.exp(log_p)
    return (_times(p, log_p) - _times(p, log_q)).sum(-1)

  def _log(self) -> Array:
    return jax.nn.log_softmax(wide(self.logits))


class DiagonalGaussian(NamedTuple):
  """Actions that are vectors, with independent numbers.

  Attributes:
    mean: `[..., d]`.
    log_scale: `[..., d]`, logarithms of the standard deviations.
  """

  mean: Array
  log_scale: Array

  def sample(self, rng: PRNGKey) -> Array:
    """Returns actions `[..., d]`."""
    noise = jax.random.normal(rng, self.mean.shape, self.mean.dtype)
    return self.mean + jnp.exp(self.log_scale) * noise

  def mode(self) -> Array:
    """Returns the means `[..., d]`."""
    return self.mean

  def log_prob(self, actions: Array) -> Array:
    """Returns the log-densities of actions `[..., d]`."""
    log_scale = wide(self.log_scale)
    error = (wide(actions) - wide(self.mean)) * jnp.exp(-log_scale)
    return -(0.5 * jnp.square(error) + log_scale + 0.5 * _LOG_2PI).sum(-1)

  def entropy(self) -> Array:
    """Returns `sum_i log s_i + (1 + log 2 pi) / 2`."""
    return (wide(self.log_scale) + 0.5 * (1 + _LOG_2PI)).sum(-1)

  def kl(self, other: "DiagonalGaussian") -> Array:
    """Returns `sum_i log(s'_i / s_i) + (s_i^2 + (m_i - m'_i)^2) / 2 s'_i^2 - 1/2`."""  # noqa: E501
    narrower = wide(other.log_scale) - wide(self.log_scale)
    error = wide(self.mean) - wide(other.mean)
    error = error * jnp.exp(-wide(other.log_scale))
    of_scale = narrower + 0.5 * jnp.exp(-2 * narrower) - 0.5
    return (of_scale + 0.5 * jnp.square(error)).sum(-1)


def _times(p: Array, log_q: Array) -> Array:
  """Returns `p log q`, with the limit 0 and no gradient where p is 0."""
  return jnp.where(p > 0, p * jnp.where(p > 0, log_q, 0.0), 0.0)
