"""Predictive distributions: what `predict` may return in place of numbers.

They are NamedTuples of arrays with a leading example axis `[n, ...]`. So they
can be indexed by example, mapped and masked like arrays of predictions. Each is
a distribution of every target number alone.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, gammaln
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from metajax.types import Array

# Bisections are of 64 steps, enough for float64.
HALVINGS = 64
# Quantiles of Student's t are within sinh(40) = 1e17 scales of the mean.
FARTHEST = 40.0
# Above so many degrees of freedom, in float32 and in float64, gamma functions
# cancel, and series are more accurate.
MANY = 30.0, 1e4


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
    z = (targets - self.mean) / self.scale
    terms = (self.df + 1) / 2 * jnp.log1p(jnp.square(z) / self.df)
    constant = 0.5 * jnp.log(2 * jnp.pi) + jnp.log(self.scale)
    return _log_ratio(self.df / 2) - constant - terms

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
    # And a factor of 2.0, since 2 * 0 - 1 of bytes is 255.
    return jax.nn.log_sigmoid((2.0 * targets - 1) * self.logits)

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
  many = _many(df)
  few, df = jnp.where(many, 1, df), jnp.where(many, df, MANY[0])
  finite = jnp.finfo(jnp.result_type(z))
  z = jnp.clip(z, finite.min / 4, finite.max / 4)
  square = jnp.square(z)
  # One form is accurate near the centre, the other one in the tails. Beyond
  # these its argument is another one, so that no derivative is NaN.
  near, infinite = square < few, jnp.isinf(square)
  tiny = square < finite.eps**2 * few
  inner = jnp.where(near & ~tiny, square, few)
  outer = jnp.where(near | infinite, few, square)
  central = jnp.sign(z) * betainc(0.5, few / 2, inner / (few + inner)) / 2
  density = jnp.exp(_log_ratio(few / 2) - 0.5 * jnp.log(2 * jnp.pi))
  central = 0.5 + jnp.where(tiny, z * density, central)
  tail = betainc(few / 2, 0.5, few / (few + outer)) / 2
  tail = jnp.where(infinite, 0, tail)
  tail = jnp.where(z < 0, tail, 1 - tail)
  exact = jnp.where(near, central, tail)
  return jnp.where(many, norm.cdf(_to_normal(z, df)), exact)


def _to_normal(z: Array, df: Array) -> Array:
  """Maps numbers of Student's t, of many degrees, to those of N(0, 1).

  The equation is that of Hill, `Algorithm 395
  <https://doi.org/10.1145/355598.355600>`_, 1970.
  """
  z = jnp.clip(z, -1e3, 1e3)  # No power overflows.
  s = jnp.square(z) / df
  # The derivative of the quotient is NaN at 0, and overflows beside it.
  large = s > jnp.finfo(s.dtype).eps
  curved = jnp.where(large, jnp.log1p(s) / jnp.where(large, s, 1), 1 - s / 2)
  a = df - 0.5
  root = z * jnp.sqrt(a / df * curved)
  y, b = jnp.square(root), 48 * jnp.square(a)
  terms = (((-0.4 * y - 3.3) * y - 24) * y - 85.5) * y
  terms = terms / (0.8 * jnp.square(y) + 100 + b) + y + 3
  return (terms / b + 1) * root


def _log_ratio(x: Array) -> Array:
  """Returns `log gamma(x + 1/2) - log gamma(x) - log(x) / 2`."""
  many = _many(2 * x)
  few, x = jnp.where(many, 1, x), jnp.where(many, x, 1)
  series = (1 / jnp.square(x) / 24 - 1) / (8 * x)
  exact = gammaln(few + 0.5) - gammaln(few) - 0.5 * jnp.log(few)
  return jnp.where(many, series, exact)


def _many(df: Array) -> Array:
  return df > MANY[jnp.finfo(jnp.result_type(df)).bits > 32]
