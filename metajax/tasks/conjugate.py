"""Sequences of observations whose posterior has a closed form."""

import jax
import jax.numpy as jnp

from metajax.numerics import check_number
from metajax.predictive import Bernoulli, Normal, Predictive, StudentT
from metajax.tasks.form import Number
from metajax.tasks.known import KnownTasks
from metajax.tasks.observations import Seen, observations
from metajax.types import Array, PRNGKey


def coin_flips(
  shots: Number = 10,
  query_shots: Number = 1,
  *,
  heads: float = 1.0,
  tails: float = 1.0,
) -> KnownTasks:
  """Builds tasks of predicting the flips of a biased coin.

  ::

    p ~ Beta(heads, tails),  y ~ Bernoulli(p)

    p(y = 1 | D) = (heads + number of 1) / (heads + tails + n)

  Args:
    shots: number of support flips, or the least and most.
    query_shots: number of query flips, or the least and most.
    heads: flips of 1 that the prior is worth, above 0.
    tails: flips of 0 that the prior is worth, above 0.

  Returns:
    Tasks with targets 0.0 and 1.0. The hyper-parameter is p.
  """
  check_number("heads", heads, above=0)
  check_number("tails", tails, above=0)

  def draw(rng: PRNGKey) -> Array:
    return jax.random.beta(rng, heads, tails)

  def flip(rng: PRNGKey, p: Array, count: int) -> Array:
    return jax.random.bernoulli(rng, p, (count,)).astype(p.dtype)

  def posterior(seen: Seen) -> Predictive:
    ones = heads + seen.total
    return Bernoulli(jnp.log(ones) - jnp.log(tails + seen.number - seen.total))

  def given(p: Array) -> Predictive:
    return Bernoulli(jnp.log(p) - jnp.log1p(-p))

  return observations(shots, query_shots, draw, flip, posterior, given)


def normal_means(
  shots: Number = 10,
  query_shots: Number = 1,
  *,
  mean: float = 0.0,
  scale: float = 1.0,
  noise: float = 1.0,
) -> KnownTasks:
  """Builds tasks of predicting normal numbers of an unknown mean.

  ::

    mu ~ N(mean, scale^2),  y ~ N(mu, noise^2)

    p(y | D) = N(m, v + noise^2),
    v = 1 / (1 / scale^2 + n / noise^2),
    m = v (mean / scale^2 + sum of y / noise^2)

  Args:
    shots: number of support numbers, or the least and most.
    query_shots: number of query numbers, or the least and most.
    mean: the prior mean of mu.
    scale: the prior standard deviation of mu, above 0.
    noise: the standard deviation of y, above 0.

  Returns:
    Tasks whose hyper-parameter is mu.
  """
  check_number("scale", scale, above=0)
  check_number("noise", noise, above=0)

  def draw(rng: PRNGKey) -> Array:
    return mean + scale * jax.random.normal(rng)

  def observe(rng: PRNGKey, mu: Array, count: int) -> Array:
    return mu + noise * jax.random.normal(rng, (count,))

  def posterior(seen: Seen) -> Predictive:
    v = 1 / (1 / scale**2 + seen.number / noise**2)
    m = v * (mean / scale**2 + seen.total / noise**2)
    return Normal(m, jnp.sqrt(v + noise**2))

  def given(mu: Array) -> Predictive:
    return Normal(mu, jnp.full_like(mu, noise))

  return observations(shots, query_shots, draw, observe, posterior, given)


def normal_gamma(
  shots: Number = 10,
  query_shots: Number = 1,
  *,
  mean: float = 0.0,
  count: float = 1.0,
  shape: float = 2.0,
  rate: float = 2.0,
) -> KnownTasks:
  """Builds tasks of normal numbers of unknown mean and variance.

  ::

    t ~ Gamma(shape, rate),  mu ~ N(mean, 1 / (count t)),  y ~ N(mu, 1 / t)

    p(y | D) = StudentT(m, b (c + 1) / (a c), 2 a)   (mean, scale^2, df),
    c = count + n,  m = (count mean + sum of y) / c,  a = shape + n / 2,
    b = rate + 1/2 sum (y - ybar)^2 + count n (ybar - mean)^2 / (2 c)

  Args:
    shots: number of support numbers, or the least and most.
    query_shots: number of query numbers, or the least and most.
    mean: the prior mean of mu.
    count: observations that the prior mean is worth, above 0.
    shape: the shape of the prior of the precision t, 0.5 or more. With less,
      some numbers would be too large for float32.
    rate: its rate, above 0.

  Returns:
    Tasks whose hyper-parameters are (mu, t).

  References:
    Murphy, `Conjugate Bayesian analysis of the Gaussian distribution
    <https://www.cs.ubc.ca/~murphyk/Papers/bayesGauss.pdf>`_, 2007, section 3.
  """
  check_number("count", count, above=0)
  check_number("shape", shape, at_least=0.5)
  check_number("rate", rate, above=0)

  def draw(rng: PRNGKey) -> tuple[Array, Array]:
    precision_key, mean_key = jax.random.split(rng)
    t = jax.random.gamma(precision_key, shape) / rate
    return mean + jax.random.normal(mean_key) / jnp.sqrt(count * t), t

  def observe(rng: PRNGKey, hyper: tuple[Array, Array], size: int) -> Array:
    mu, t = hyper
    return mu + jax.random.normal(rng, (size,)) / jnp.sqrt(t)

  def posterior(seen: Seen) -> Predictive:
    n, total, squares = seen
    c, a = count + n, shape + n / 2
    m = (count * mean + total) / c
    away = total / jnp.maximum(n, 1) - mean
    b = rate + squares / 2 + count * n * jnp.square(away) / (2 * c)
    return StudentT(m, jnp.sqrt(b * (c + 1) / (a * c)), 2 * a)

  def given(hyper: tuple[Array, Array]) -> Predictive:
    mu, t = hyper
    return Normal(mu, 1 / jnp.sqrt(t))

  return observations(shots, query_shots, draw, observe, posterior, given)
