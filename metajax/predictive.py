"""Predictive distributions: what `predict` may return in place of numbers.

They are NamedTuples of arrays with a leading example axis `[n, ...]`. So they
can be indexed by example, mapped and masked like arrays of predictions. Each is
a distribution of every target number alone. They are computed in float32 at
least.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, betaln, gammaln
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from metajax.numerics import floating, wide
from metajax.types import Array

# Bisections are of 64 steps, enough for float64.
HALVINGS = 64
# Beyond sinh(40) = 1e17 scales from the mean, Student's t is a power.
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
    return jnp.square(wide(self.scale))

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`."""
    return normal_log_prob(targets, self.mean, self.scale)

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    return norm.cdf(_standardized(targets, self.mean, self.scale))

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`."""
    return norm.ppf(wide(q), wide(self.mean), wide(self.scale))


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
    return self._average(wide(self.means))

  @property
  def variance(self) -> Array:
    """See `Predictive`."""
    away = wide(self.means) - self.mean[..., None]
    return self._average(jnp.square(wide(self.scale)) + jnp.square(away))

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`."""
    terms = normal_log_prob(targets[..., None], self.means, self.scale)
    return jax.nn.logsumexp(terms + self.log_weights, axis=-1)

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    z = _standardized(targets[..., None], self.means, self.scale)
    return self._average(norm.cdf(z))

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`. It is between those of the components: bisection."""
    q = wide(q)
    # At least one component has more than q below the mixture's quantile.
    ends = norm.ppf(q[..., None], wide(self.means), wide(self.scale))
    low, high = ends.min(-1), ends.max(-1)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
      low, high = ends
      middle = low + (high - low) / 2
      below = self.cdf(middle) < q
      return jnp.where(below, middle, low), jnp.where(below, high, middle)

    found = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))[1]
    return _root(
      found, lambda y: self.cdf(y) - q, lambda y: jnp.exp(self.log_prob(y))
    )

  def _average(self, values: Array) -> Array:
    return (jnp.exp(wide(self.log_weights)) * values).sum(-1)


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
    df = jnp.where(more, wide(self.df), 3)
    finite = jnp.square(wide(self.scale)) / (1 - 2 / df)
    return jnp.where(more, finite, jnp.inf)

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`."""
    z = _standardized(targets, self.mean, self.scale)
    return _student_log_prob(z, wide(self.df)) - jnp.log(wide(self.scale))

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    z = _standardized(targets, self.mean, self.scale)
    return _student_cdf(z, wide(self.df))

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`. It is found by bisection of arsinh(y)."""
    q, mean, df = wide(q), wide(self.mean), wide(self.df)
    high = jnp.full_like(mean, FARTHEST)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
      low, high = ends
      middle = (low + high) / 2
      below = _student_cdf(jnp.sinh(middle), df) < q
      return jnp.where(below, middle, low), jnp.where(below, high, middle)

    found = jnp.sinh(jax.lax.fori_loop(0, HALVINGS, halve, (-high, high))[1])
    z = _root(
      found,
      lambda y: _student_cdf(y, df) - q,
      lambda y: jnp.exp(_student_log_prob(y, df)),
    )
    power = _student_power(jnp.minimum(q, 1 - q), df)
    far = jnp.where(power > FARTHEST, power, FARTHEST)
    far = jnp.sign(q - 0.5) * jnp.exp(far)
    return mean + wide(self.scale) * jnp.where(power > FARTHEST, far, z)


class Bernoulli(NamedTuple):
  """A distribution of targets that are 0 or 1.

  Attributes:
    logits: `[n, d]`, log odds of 1.
  """

  logits: Array

  @property
  def mean(self) -> Array:
    """See `Predictive`: the probability of 1."""
    return jax.nn.sigmoid(wide(self.logits))

  @property
  def variance(self) -> Array:
    """See `Predictive`."""
    return self.mean * jax.nn.sigmoid(-wide(self.logits))

  def log_prob(self, targets: Array) -> Array:
    """See `Predictive`; log probabilities."""
    # One term, and not two with a weight of 0: a logit may be infinite.
    signs = 2 * floating(targets) - 1
    return jax.nn.log_sigmoid(signs * wide(self.logits))

  def cdf(self, targets: Array) -> Array:
    """See `Predictive`."""
    zero = jax.nn.sigmoid(-wide(self.logits))
    return jnp.where(targets < 0, 0, jnp.where(targets < 1, zero, 1))

  def quantile(self, q: ArrayLike) -> Array:
    """See `Predictive`."""
    logits = wide(self.logits)
    return (wide(q) > jax.nn.sigmoid(-logits)).astype(logits.dtype)


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
  return jnp.mean(jnp.square(predictions.mean - wide(targets)))


def check_shapes(predictions: Predictive, targets: Array) -> None:
  """Raises a ValueError unless targets have the shape of the predictions."""
  if jnp.shape(predictions.mean) != jnp.shape(targets):
    raise ValueError(
      f"predictions of shape {jnp.shape(predictions.mean)} and targets of "
      f"shape {jnp.shape(targets)}: must be equal, [n, d]."
    )


def normal_log_prob(targets: Array, mean: Array, scale: Array) -> Array:
  """Returns `log N(targets; mean, scale^2)`, number by number."""
  z = _standardized(targets, mean, scale)
  constant = 0.5 * jnp.log(2 * jnp.pi)
  return -0.5 * jnp.square(z) - jnp.log(wide(scale)) - constant


def _standardized(targets: Array, mean: Array, scale: Array) -> Array:
  return (wide(targets) - wide(mean)) / wide(scale)


def _root(
  found: Array,
  residual: Callable[[Array], Array],
  slope: Callable[[Array], Array],
) -> Array:
  """Gives a root that was found by bisection its derivatives.

  They are those of Newton's steps; two steps have the second ones, too.
  """
  y = jax.lax.stop_gradient(found)
  for _ in range(2):
    step = residual(y) / jnp.maximum(slope(y), jnp.finfo(y.dtype).tiny)
    y -= step - jax.lax.stop_gradient(step)
  return y


def _student_log_prob(z: Array, df: Array) -> Array:
  terms = (df + 1) / 2 * jnp.log1p(jnp.square(z) / df)
  return _log_ratio(df / 2) - 0.5 * jnp.log(2 * jnp.pi) - terms


def _student_power(tail: Array, df: Array) -> Array:
  """Returns log z with the probability `tail` beyond z, for large z.

  There, the probability is `(df / z^2)^(df / 2) / (df B(df / 2, 1 / 2))`.
  """
  beta = jnp.log(df) + betaln(df / 2, 0.5)
  return jnp.log(df) / 2 - (jnp.log(tail) + beta) / df


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
