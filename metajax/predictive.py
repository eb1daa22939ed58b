"""STUB until h/gp-30 is merged."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from metajax.types import Array


class Normal(NamedTuple):
  mean: Array
  scale: Array

  @property
  def variance(self):
    return self.scale**2

  def log_prob(self, targets):
    return norm.logpdf(targets, self.mean, self.scale)

  def cdf(self, targets):
    return norm.cdf(targets, self.mean, self.scale)

  def quantile(self, q):
    return norm.ppf(q, self.mean, self.scale)


class NormalMixture(NamedTuple):
  means: Array
  scale: Array
  log_weights: Array

  @property
  def mean(self):
    return (jnp.exp(self.log_weights) * self.means).sum(-1)

  @property
  def variance(self):
    square = jnp.exp(self.log_weights) * (self.scale**2 + self.means**2)
    return square.sum(-1) - self.mean**2

  def log_prob(self, targets):
    terms = norm.logpdf(targets[..., None], self.means, self.scale)
    return jax.nn.logsumexp(terms + self.log_weights, axis=-1)

  def cdf(self, targets):
    terms = norm.cdf(targets[..., None], self.means, self.scale)
    return (jnp.exp(self.log_weights) * terms).sum(-1)

  def quantile(self, q):
    low = (self.means - 12 * self.scale).min(-1)
    high = (self.means + 12 * self.scale).max(-1)

    def halve(_, ends):
      low, high = ends
      mid = (low + high) / 2
      below = self.cdf(mid) < q
      return jnp.where(below, mid, low), jnp.where(below, high, mid)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    return (low + high) / 2


def negative_log_likelihood(predictions, targets):
  return -predictions.log_prob(targets).mean()
