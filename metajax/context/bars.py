"""Bar distributions: densities that are piecewise constant."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from metajax.numerics import check_counts, wide
from metajax.types import Array

# The half-normal beyond an edge has half of its mass in the outermost bar.
UNIT = 0.6744897501960817  # norm.ppf(0.75)


class Bars(NamedTuple):
  """A distribution of B bars between edges, with half-normal tails.

  ::

    p(y) = p_b / (e_{b+1} - e_b)        in bar b
    p(y) = p_0 HalfNormal(e_1 - y)      below e_1
    p(y) = p_B HalfNormal(y - e_{B-1})  above e_{B-1}

  The outermost bars are replaced by half-normals that begin at their inner
  edges. Half of the mass of each is within its bar. A bar distribution fits any
  shape of density, and its training is a classification.

  Attributes:
    logits: `[n, d, B]` of the probabilities of the bars.
    edges: `[n, B + 1]`, increasing. They are the same for all examples.

  References:
    Müller et al., `Transformers Can Do Bayesian Inference
    <https://arxiv.org/abs/2112.10510>`_, 2022, section 4 and appendix E.
  """

  logits: Array
  edges: Array

  @property
  def probabilities(self) -> Array:
    """The probabilities `[n, d, B]` of the bars."""
    return jax.nn.softmax(wide(self.logits), axis=-1)

  @property
  def mean(self) -> Array:
    """The mean `[n, d]`."""
    return (self.probabilities * self._moments()[0]).sum(-1)

  @property
  def variance(self) -> Array:
    """The variance `[n, d]`."""
    centres, spreads = self._moments()
    far = centres - self.mean[..., None]
    return (self.probabilities * (spreads + jnp.square(far))).sum(-1)

  def log_prob(self, targets: Array) -> Array:
    """Returns the log densities `[n, d]` of targets `[n, d]`, in nats."""
    bar, first, last = self._bars(targets)
    width = _pick(jnp.diff(self.edges), bar)
    low, high = self._distances(targets)
    tail = jnp.log(2.0) + norm.logpdf(
      jnp.where(first, low, high), scale=width / UNIT
    )
    inside = jnp.where(first | last, tail, -jnp.log(width))
    return _at(jax.nn.log_softmax(wide(self.logits), axis=-1), bar) + inside

  def cdf(self, targets: Array) -> Array:
    """Returns the probabilities `[n, d]` of less than `targets`, `[n, d]`."""
    bar, first, last = self._bars(targets)
    width = _pick(jnp.diff(self.edges), bar)
    low, high = (
      2 * norm.sf(x * UNIT / width) for x in self._distances(targets)
    )
    part = (targets - _pick(self.edges, bar)) / width
    part = jnp.where(first, low, jnp.where(last, 1 - high, part))
    p = self.probabilities
    return _at(_below(p), bar) + part * _at(p, bar)

  def quantile(self, q: ArrayLike) -> Array:
    """Returns the quantiles `[n, d]` of the probability q, in (0, 1)."""
    p = self.probabilities
    q = jnp.broadcast_to(q, p.shape[:-1])
    starts = _below(p)
    bar = (starts[..., 1:] <= q[..., None]).sum(-1)
    part = (q - _at(starts, bar)) / jnp.maximum(_at(p, bar), 1e-30)
    part = jnp.clip(part, 0, 1)
    left, width = _pick(self.edges, bar), _pick(jnp.diff(self.edges), bar)
    low = left + width + width / UNIT * norm.ppf(part / 2)
    high = left - width / UNIT * norm.ppf((1 - part) / 2)
    inside = jnp.where(bar == p.shape[-1] - 1, high, left + part * width)
    return jnp.where(bar == 0, low, inside)

  def _bars(self, targets: Array) -> tuple[Array, Array, Array]:
    """Returns the bar of each target, and whether it is the first or last."""
    bar = (targets[..., None] >= self.edges[:, None, 1:-1]).sum(-1)
    return bar, bar == 0, bar == self.logits.shape[-1] - 1

  def _distances(self, targets: Array) -> tuple[Array, Array]:
    """Returns how far targets are within the two tails, 0 outside of them."""
    low = self.edges[:, 1, None] - targets
    high = targets - self.edges[:, -2, None]
    return jnp.maximum(low, 0), jnp.maximum(high, 0)

  def _moments(self) -> tuple[Array, Array]:
    """Returns means and variances of the bars, `[n, 1, B]`."""
    widths = jnp.diff(self.edges)
    centres = self.edges[:, :-1] + widths / 2
    spreads = jnp.square(widths) / 12
    outer = widths[:, jnp.array([0, -1])] / UNIT
    reach = outer * jnp.sqrt(2 / jnp.pi)
    centres = centres.at[:, 0].set(self.edges[:, 1] - reach[:, 0])
    centres = centres.at[:, -1].set(self.edges[:, -2] + reach[:, 1])
    tails = jnp.square(outer) * (1 - 2 / jnp.pi)
    spreads = spreads.at[:, jnp.array([0, -1])].set(tails)
    return centres[:, None], spreads[:, None]


def quantile_edges(targets: Array, num_bars: int) -> Array:
  """Returns edges `[num_bars + 1]` between which targets are equally frequent.

  Args:
    targets: many targets of the prior, of any shape.
    num_bars: the number of bars, 3 or more.

  Raises:
    ValueError: for less than 3 bars, or if targets are so often equal that a
      bar has no width.
  """
  check_counts(num_bars=num_bars, at_least=3)
  edges = jnp.quantile(wide(targets).ravel(), jnp.linspace(0, 1, num_bars + 1))
  if not isinstance(edges, jax.core.Tracer) and not bool(
    jnp.all(jnp.diff(edges) > 0)
  ):
    raise ValueError(
      f"targets: too many are equal for num_bars={num_bars}, whose edges must "
      "increase; give fewer bars or more targets."
    )
  return edges


def _pick(values: Array, bar: Array) -> Array:
  """Returns `values [n, ...]` at the bars `[n, d]`."""
  return jnp.take_along_axis(values, bar, axis=1)


def _at(values: Array, bar: Array) -> Array:
  """Returns `values [n, d, B]` at the bars `[n, d]`."""
  return jnp.take_along_axis(values, bar[..., None], axis=-1)[..., 0]


def _below(p: Array) -> Array:
  """Returns the probability below each bar, of `[..., B]`."""
  return jnp.cumsum(p, axis=-1) - p
