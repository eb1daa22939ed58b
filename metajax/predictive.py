"""Predictive distributions: what `predict` may return in place of numbers.

They are NamedTuples of arrays with a leading example axis `[n, ...]`. So they
can be indexed by example, mapped and masked like arrays of predictions. Each is
a distribution of every target number alone.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc
from jax.scipy.stats import norm, t
from jax.typing import ArrayLike

from metajax.types import Array

# Bisections are of 64 steps, enough for float64.
HALVINGS = 64
# Quantiles of Student's t are within sinh(40) = 1e17 scales of the mean.
FARTHEST = 40.0


class Predictive(Protocol):
  """A distribution of the targets `[n, d]` of n examples, number by number."""

  @property
  def mean(self) -> Array:
    """The means `[n, d]`."""

  @property
  def variance(self) -> Array:
    """The variances `[n, d]`."""

  def log_prob(self, targets: Array, /) -> Array:
    """Returns the log densities `[n, d]` of targets `[n, d]`, in nats."""

  def cdf(self, targets: Array, /) -> Array:
    """Returns the probabilities `[n, d]` of at most `targets`, `[n, d]`."""

  def quantile(self, q: ArrayLike, /) -> Array:
    """Returns `[n, d]`, the least y with `cdf(y) >= q`, for q in (0, 1)."""


class Normal(NamedTuple):
  """A normal distribution of each number.

  Attributes:
    mean: `[n, d]`.
    scale: `[n, d]`, the standard deviations.
  """

  mean: Array
  scale: Array

  @property
  def variance(self) -> Array:
    """See `Predictive`."""
    return jnp.square(self.scale)

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`."""
    return norm.logpdf(targets, self.mean, self.scale)

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    return norm.cdf(targets, self.mean, self.scale)

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`."""
    return norm.ppf(q, self.mean, self.scale)


class NormalMixture(NamedTuple):
  """A mixture of K normal distributions of each number.

  ::

    p(y) = sum_k w_k N(y; mean_k, scale_k^2)

  The K components may be samples of a latent variable, or points of a grid over
  hyper-parameters.

  Attributes:
    means: `[n, d, K]`.
    scale: `[n, d, K]`, the standard deviations.
    log_weights: `[n, d, K]` or `[n, 1, K]`, log w_k. The w_k sum to 1.
  """

  means: Array
  scale: Array
  log_weights: Array

  @property
  def mean(self) -> Array:
    """See `Predictive`."""
    return self._average(self.means)

  @property
  def variance(self) -> Array:
    """See `Predictive`."""
    away = self.means - self.mean[..., None]
    return self._average(jnp.square(self.scale) + jnp.square(away))

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`."""
    terms = norm.logpdf(targets[..., None], self.means, self.scale)
    return jax.nn.logsumexp(terms + self.log_weights, axis=-1)

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    return self._average(norm.cdf(targets[..., None], self.means, self.scale))

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`. It is between those of the components: bisection."""
    q = jnp.asarray(q)
    # At least one component has more than q below the mixture's quantile.
    ends = norm.ppf(q[..., None], self.means, self.scale)
    low, high = ends.min(-1), ends.max(-1)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
      low, high = ends
      middle = low + (high - low) / 2
      below = self.cdf(middle) < q
      return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, HALVINGS, halve, (low, high))[1]

  def _average(self, values: Array) -> Array:
    return (jnp.exp(self.log_weights) * values).sum(-1)


class StudentT(NamedTuple):
  """Student's t distribution of each number, moved and scaled.

  Attributes:
    mean: `[n, d]`, the centre, which is the mean for `df` above 1.
    scale: `[n, d]`, by which a number of Student's t is multiplied.
    df: `[n, d]`, degrees of freedom, above 0.
  """

  mean: Array
  scale: Array
  df: Array

  @property
  def variance(self) -> Array:
    """See `Predictive`; infinite for `df` of 2 or less."""
    more = self.df > 2
    df = jnp.where(more, self.df, 3)
    return jnp.where(more, jnp.square(self.scale) * df / (df - 2), jnp.inf)

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`."""
    return t.logpdf(targets, self.df, self.mean, self.scale)

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    return _student_cdf((targets - self.mean) / self.scale, self.df)

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`. It is found by bisection of arsinh(y)."""
    high = jnp.full_like(self.mean, FARTHEST)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
      low, high = ends
      middle = (low + high) / 2
      below = _student_cdf(jnp.sinh(middle), self.df) < q
      return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jax.lax.fori_loop(0, HALVINGS, halve, (-high, high))
    return self.mean + self.scale * jnp.sinh(ends[1])


class Bernoulli(NamedTuple):
  """A distribution of targets that are 0 or 1.

  Attributes:
    logits: `[n, d]`, log odds of 1.
  """

  logits: Array

  @property
  def mean(self) -> Array:
    """See `Predictive`: the probability of 1."""
    return jax.nn.sigmoid(self.logits)

  @property
  def variance(self) -> Array:
    """See `Predictive`."""
    return self.mean * jax.nn.sigmoid(-self.logits)

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`; log probabilities."""
    # One term, and not two with a weight of 0: a logit may be infinite.
    return jax.nn.log_sigmoid((2 * targets - 1) * self.logits)

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    zero = jax.nn.sigmoid(-self.logits)
    return jnp.where(targets < 0, 0, jnp.where(targets < 1, zero, 1))

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`."""
    one = jnp.asarray(q) > jax.nn.sigmoid(-self.logits)
    return one.astype(self.logits.dtype)


def log_likelihood(predictions: Predictive, targets: Array) -> Array:
  """Mean log density of the targets `[n, d]`, in nats for each number.

  ::

    1/(n d) sum_ij log p_ij(y_ij)
  """
  check_shapes(predictions, targets)
  return predictions.log_prob(targets).mean()


def negative_log_likelihood(predictions: Predictive, targets: Array) -> Array:
  """The loss whose minimum is the exact predictive distribution.

  It is `-log_likelihood(predictions, targets)`.
  """
  return -log_likelihood(predictions, targets)


def mean_error(predictions: Predictive, targets: Array) -> Array:
  """Mean of `(mean - targets)^2`, with the mean of the distribution."""
  check_shapes(predictions, targets)
  return jnp.mean(jnp.square(predictions.mean - targets))


def check_shapes(predictions: Predictive, targets: Array) -> None:
  """Raises a ValueError unless targets have the shape of the predictions."""
  if jnp.shape(predictions.mean) != jnp.shape(targets):
    raise ValueError(
      f"predictions of shape {jnp.shape(predictions.mean)} and targets of "
      f"shape {jnp.shape(targets)}: must be equal, [n, d]."
    )


def _student_cdf(z: Array, df: Array) -> Array:
  square = jnp.square(z)
  # One form is accurate near the centre, the other one in the tails.
  central = betainc(0.5, df / 2, square / (df + square)) / 2
  tail = betainc(df / 2, 0.5, df / (df + square)) / 2
  central, tail = 0.5 + jnp.sign(z) * central, jnp.where(z < 0, tail, 1 - tail)
  return jnp.where(square < df, central, tail)
